// What this CUDA part was built with, as text for who opens _cuda.so without the core (`dcomm doctor`). Floor: launch.
#include <cuda_runtime.h>

// __CUDA_ARCH_LIST__ is nvcc's own list, ascending: 800,900. CMakeLists.txt gives the last one PTX too.
#define DCOMM_CUDA_TEXT_OF(...) #__VA_ARGS__
#define DCOMM_CUDA_TEXT(...) DCOMM_CUDA_TEXT_OF(__VA_ARGS__)

extern "C" __attribute__((visibility("default"))) const char* dcomm_cuda_build() {
  return "cudart=" DCOMM_CUDA_TEXT(CUDART_VERSION) " archs=" DCOMM_CUDA_TEXT(__CUDA_ARCH_LIST__);
}
