// All-reduce kernels whose sums travel through slots: two_shot, ring, tree. Floor: launch.
#include "launch/cuda_grid.cuh"

namespace dcomm {

#define DCOMM_KERNELS(name, User, Wire)                               \
  kernel_of<TwoShotBody<User, Wire, 2>>("two_shot<" name ", 2>"),     \
      kernel_of<TwoShotBody<User, Wire, 4>>("two_shot<" name ", 4>"), \
      kernel_of<TwoShotBody<User, Wire, 8>>("two_shot<" name ", 8>"), \
      kernel_of<TwoShotBody<User, Wire, 0>>("two_shot<" name ", n>"), \
      kernel_of<RingBody<User, Wire>>("ring<" name ">"), kernel_of<TreeBody<User, Wire>>("tree<" name ">")

CudaKernelList cuda_kernels_by_slots() {
  static const CudaKernel kernels[] = {
      DCOMM_KERNELS("f32, f32", CudaF32, CudaF32), DCOMM_KERNELS("f32, bf16", CudaF32, CudaBF16),
      DCOMM_KERNELS("f32, f16", CudaF32, CudaF16), DCOMM_KERNELS("bf16, bf16", CudaBF16, CudaBF16),
      DCOMM_KERNELS("f16, f16", CudaF16, CudaF16), kernel_of<TwoShotBlocksBody>("two_shot<f32, fp8, n>"),
  };
  return list_kernels(kernels);
}

}  // namespace dcomm
