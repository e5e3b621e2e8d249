// Kernels that sum integers, by width, and bool: all_reduce (two_shot, ring), reduce_scatter, reduce. Floor: launch.
#include "launch/cuda_grid.cuh"

namespace dcomm {

#define DCOMM_KERNELS(name, Element)                                                                                   \
  kernel_of<IntegerTwoShotBody<Element>>("two_shot<" name ">"), kernel_of<IntegerRingBody<Element>>("ring<" name ">"), \
      kernel_of<IntegerReduceScatterBody<Element>>("reduce_scatter<" name ">"),                                        \
      kernel_of<IntegerReduceBody<Element>>("reduce<" name ">")

CudaKernelList cuda_kernels_of_integers() {
  static const CudaKernel kernels[] = {
      DCOMM_KERNELS("i8", CudaI8),
      DCOMM_KERNELS("i32", CudaI32),
      DCOMM_KERNELS("i64", CudaI64),
      DCOMM_KERNELS("bool", CudaBool),
  };
  return list_kernels(kernels);
}

}  // namespace dcomm
