// Kernels that leave a sum, or a block of it, on one rank: reduce_scatter, reduce. Floor: launch.
#include "launch/cuda_grid.cuh"

namespace dcomm {

#define DCOMM_KERNELS(name, Type)                                           \
  kernel_of<ReduceScatterBody<Type, 2>>("reduce_scatter<" name ", 2>"),     \
      kernel_of<ReduceScatterBody<Type, 4>>("reduce_scatter<" name ", 4>"), \
      kernel_of<ReduceScatterBody<Type, 8>>("reduce_scatter<" name ", 8>"), \
      kernel_of<ReduceScatterBody<Type, 0>>("reduce_scatter<" name ", n>"), \
      kernel_of<ReduceBody<Type>>("reduce<" name ">")

CudaKernelList cuda_kernels_one_result() {
  static const CudaKernel kernels[] = {
      DCOMM_KERNELS("f32", CudaF32),
      DCOMM_KERNELS("bf16", CudaBF16),
      DCOMM_KERNELS("f16", CudaF16),
  };
  return list_kernels(kernels);
}

}  // namespace dcomm
