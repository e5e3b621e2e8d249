// All-reduce kernels in one step: one_shot, in packets and in slots. Floor: launch.
#include "launch/cuda_grid.cuh"

namespace dcomm {

#define DCOMM_KERNELS(name, User, Wire)                              \
  kernel_of<PacketsBody<User, Wire, 2>>("packets<" name ", 2>"),     \
      kernel_of<PacketsBody<User, Wire, 4>>("packets<" name ", 4>"), \
      kernel_of<PacketsBody<User, Wire, 8>>("packets<" name ", 8>"), \
      kernel_of<PacketsBody<User, Wire, 0>>("packets<" name ", n>"), \
      kernel_of<OneShotBody<User, Wire>>("one_shot<" name ">")

CudaKernelList cuda_kernels_one_shot() {
  static const CudaKernel kernels[] = {
      DCOMM_KERNELS("f32, f32", CudaF32, CudaF32), DCOMM_KERNELS("f32, bf16", CudaF32, CudaBF16),
      DCOMM_KERNELS("f32, f16", CudaF32, CudaF16), DCOMM_KERNELS("bf16, bf16", CudaBF16, CudaBF16),
      DCOMM_KERNELS("f16, f16", CudaF16, CudaF16),
  };
  return list_kernels(kernels);
}

}  // namespace dcomm
