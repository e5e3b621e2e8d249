// All-reduce kernels over arrays that all ranks reach; nothing is staged. Floor: launch.
#include "launch/cuda_grid.cuh"

namespace dcomm {

#define DCOMM_KERNELS(name, Type)                                                                                   \
  kernel_of<DirectBody<Type, 2>>("direct<" name ", 2>"), kernel_of<DirectBody<Type, 8>>("direct<" name ", 8>"),     \
      kernel_of<DirectBody<Type, 0>>("direct<" name ", n>"), kernel_of<PulledBody<Type, 2>>("pulled<" name ", 2>"), \
      kernel_of<PulledBody<Type, 0>>("pulled<" name ", n>")

CudaKernelList cuda_kernels_direct() {
  static const CudaKernel kernels[] = {
      DCOMM_KERNELS("f32", CudaF32),
      DCOMM_KERNELS("bf16", CudaBF16),
      DCOMM_KERNELS("f16", CudaF16),
  };
  return list_kernels(kernels);
}

}  // namespace dcomm
