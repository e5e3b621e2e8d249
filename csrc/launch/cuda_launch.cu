// The list of all kernels, and the one place where they are launched. Floor: launch.
//
// Several ranks on one GPU are ONE cooperative grid, rank = first_rank + blockIdx.y: either all blocks are resident,
// so that no rank spins for one that cannot start, or the launch fails. One rank per GPU is the same kernel with
// gridDim.y = 1.
#include <cuda_runtime.h>

#include "exec/cuda_block_exec.cuh"
#include "launch/cuda_kernels.h"

namespace dcomm {

namespace {

/// f(kernel) for each, in order, until it returns true.
template <class F>
void for_each_kernel(const F& f) {
  for (const CudaKernelList& list : {cuda_kernels_by_slots(), cuda_kernels_one_shot(), cuda_kernels_direct(),
                                     cuda_kernels_one_result(), cuda_kernels_of_integers(), cuda_kernels_of_bytes()}) {
    for (int i = 0; i < list.count; ++i) {
      if (f(list.first[i])) return;
    }
  }
}

}  // namespace

int num_cuda_kernels() {
  int count = 0;
  for_each_kernel([&](const CudaKernel&) {
    ++count;
    return false;
  });
  return count;
}

const CudaKernel& cuda_kernel(int index) {
  const CudaKernel* found = nullptr;
  for_each_kernel([&](const CudaKernel& kernel) {
    found = &kernel;
    return index-- == 0;
  });
  return *found;
}

const CudaKernel* find_cuda_kernel(const CudaKernelKey& key, int num_ranks) {
  const CudaKernel* found = nullptr;
  for_each_kernel([&](const CudaKernel& kernel) {
    if (!(kernel.key == key)) return false;
    if (kernel.num_ranks == num_ranks || kernel.num_ranks == 0) found = &kernel;
    return kernel.num_ranks == num_ranks;
  });
  return found;
}

size_t cuda_shared_bytes(int num_ranks) { return static_cast<size_t>(num_ranks) * sizeof(std::byte*); }

int launch_cuda_kernel(const CudaKernel& kernel, const CudaJob& job, int num_channels, int num_local_ranks,
                       CUstream_st* stream) {
  CudaJob copy = job;  // the launch takes pointers to non-const
  void* arguments[] = {&copy};
  const dim3 grid(static_cast<unsigned>(num_channels), static_cast<unsigned>(num_local_ranks));
  return cudaLaunchCooperativeKernel(kernel.function, grid, dim3(gpu::kBlockThreads), arguments,
                                     cuda_shared_bytes(job.world_size), stream);
}

}  // namespace dcomm
