// The one kernel text: a body (cuda_bodies.cuh) on a block's executor. Floor: launch.
//
// rank = first_rank + blockIdx.y, channel = blockIdx.x: the same kernel serves several ranks on one GPU and one rank
// per GPU.
#pragma once

#include <cuda_runtime.h>

#include "launch/cuda_bodies.cuh"
#include "launch/cuda_kernels.h"

namespace dcomm {

extern __shared__ std::byte* shared_windows[];

/// Here, as kernels must not call what is not for the device, even where the compiler knows the result.
template <class Body>
inline constexpr bool kInPackets = is_in_packets(Body::kKey);

template <class Body>
__global__ void __launch_bounds__(gpu::kBlockThreads, 1) k_collective(const __grid_constant__ CudaJob job) {
  CudaBlockExec exec(job, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x), shared_windows);
  Body::run(exec, job, job.arrays[blockIdx.y]);
  exec.end_operation(kInPackets<Body>);
}

template <class Body>
CudaKernel kernel_of(const char* name) {
  return {name, reinterpret_cast<const void*>(&k_collective<Body>), Body::kKey, Body::kNumRanks};
}

template <size_t kCount>
CudaKernelList list_kernels(const CudaKernel (&kernels)[kCount]) {
  return {kernels, static_cast<int>(kCount)};
}

}  // namespace dcomm
