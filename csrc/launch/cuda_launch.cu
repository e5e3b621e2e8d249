// The kernels, and the one place where they are launched. Floor: launch.
//
// Several ranks on one GPU are ONE cooperative grid, rank = first_rank + blockIdx.y: either all blocks are resident,
// so that no rank spins for one that cannot start, or the launch fails. One rank per GPU is the same kernel with
// gridDim.y = 1.
#include <cuda_runtime.h>

#include "algo/all_reduce_ring.h"
#include "algo/all_reduce_two_shot.h"
#include "exec/cuda_block_exec.cuh"
#include "exec/cuda_pack_kernels.cuh"
#include "launch/cuda_kernels.h"

namespace dcomm {

namespace {

extern __shared__ std::byte* shared_windows[];

template <class User, class Wire, int kRanks>
__global__ void __launch_bounds__(gpu::kBlockThreads, 1) k_all_reduce_two_shot(const __grid_constant__ CudaJob job) {
  CudaBlockExec exec(job, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x), shared_windows);
  constexpr bool kDividesTerms = divides_terms(User::kDType, Wire::kDType, false);
  const CudaKernels<User, Wire, kRanks, kDividesTerms> kernels(job.arrays[blockIdx.y], job.divisor);
  all_reduce_two_shot(exec, kernels, job.plan);
}

template <class User, class Wire>
__global__ void __launch_bounds__(gpu::kBlockThreads, 1) k_all_reduce_ring(const __grid_constant__ CudaJob job) {
  CudaBlockExec exec(job, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x), shared_windows);
  constexpr bool kDividesTerms = divides_terms(User::kDType, Wire::kDType, true);
  const CudaKernels<User, Wire, 0, kDividesTerms> kernels(job.arrays[blockIdx.y], job.divisor);
  all_reduce_ring(exec, kernels, job.plan);
}

template <class User, class Wire, int kRanks>
const void* two_shot_function() {
  return reinterpret_cast<const void*>(&k_all_reduce_two_shot<User, Wire, kRanks>);
}

#define DCOMM_TWO_SHOT(name, User, Wire, kRanks) \
  {name, two_shot_function<User, Wire, kRanks>(), Algo::kTwoShot, User::kDType, Wire::kDType, kRanks}
#define DCOMM_KERNELS(name, User, Wire)                                                                               \
  DCOMM_TWO_SHOT("two_shot<" name ", 2>", User, Wire, 2), DCOMM_TWO_SHOT("two_shot<" name ", 4>", User, Wire, 4),     \
      DCOMM_TWO_SHOT("two_shot<" name ", 8>", User, Wire, 8), DCOMM_TWO_SHOT("two_shot<" name ", n>", User, Wire, 0), \
      {"ring<" name ">", reinterpret_cast<const void*>(&k_all_reduce_ring<User, Wire>),                               \
       Algo::kRing,      User::kDType,                                                                                \
       Wire::kDType,     0}

const CudaKernel kKernels[] = {
    DCOMM_KERNELS("f32, f32", CudaF32, CudaF32), DCOMM_KERNELS("f32, bf16", CudaF32, CudaBF16),
    DCOMM_KERNELS("f32, f16", CudaF32, CudaF16), DCOMM_KERNELS("bf16, bf16", CudaBF16, CudaBF16),
    DCOMM_KERNELS("f16, f16", CudaF16, CudaF16),
};

#undef DCOMM_KERNELS
#undef DCOMM_TWO_SHOT

}  // namespace

const CudaKernel* cuda_kernels() { return kKernels; }

int num_cuda_kernels() { return static_cast<int>(sizeof(kKernels) / sizeof(kKernels[0])); }

const CudaKernel* find_cuda_kernel(Algo algo, DType dtype, DType wire, int num_ranks) {
  const CudaKernel* found = nullptr;
  for (const CudaKernel& kernel : kKernels) {
    if (kernel.algo != algo || kernel.dtype != dtype || kernel.wire != wire) continue;
    if (kernel.num_ranks == num_ranks) return &kernel;
    if (kernel.num_ranks == 0) found = &kernel;
  }
  return found;
}

size_t cuda_shared_bytes(int num_ranks) { return static_cast<size_t>(num_ranks) * sizeof(std::byte*); }

int launch_cuda_kernel(const CudaKernel& kernel, const CudaJob& job, int num_local_ranks, CUstream_st* stream) {
  CudaJob copy = job;  // the launch takes pointers to non-const
  void* arguments[] = {&copy};
  const dim3 grid(static_cast<unsigned>(job.num_channels), static_cast<unsigned>(num_local_ranks));
  return cudaLaunchCooperativeKernel(kernel.function, grid, dim3(gpu::kBlockThreads), arguments,
                                     cuda_shared_bytes(job.world_size), stream);
}

}  // namespace dcomm
