// Kernels that only move bytes, whatever the dtype; and the barrier. Floor: launch.
#include "launch/cuda_grid.cuh"

namespace dcomm {

CudaKernelList cuda_kernels_of_bytes() {
  static const CudaKernel kernels[] = {
      kernel_of<BroadcastBody>("broadcast"), kernel_of<AllGatherBody>("all_gather"), kernel_of<GatherBody>("gather"),
      kernel_of<ScatterBody>("scatter"),     kernel_of<AllToAllBody>("all_to_all"),  kernel_of<BarrierBody>("barrier"),
      kernel_of<SendBody>("send"),
  };
  return list_kernels(kernels);
}

}  // namespace dcomm
