// The kernels that exist and how one is launched; inside _cuda.so only. Floor: launch.
#pragma once

#include <cstddef>

#include "launch/cuda_plan.h"

struct CUstream_st;

namespace dcomm {

struct CudaJob;

struct CudaKernel {
  const char* name;
  const void* function;
  CudaKernelKey key;
  int num_ranks;  // 0: any
};

/// The kernels of one source file.
struct CudaKernelList {
  const CudaKernel* first;
  int count;
};
CudaKernelList cuda_kernels_by_slots();     // all_reduce: two_shot, ring, tree
CudaKernelList cuda_kernels_one_shot();     // all_reduce: one_shot, in packets and in slots
CudaKernelList cuda_kernels_direct();       // all_reduce: direct, pulled
CudaKernelList cuda_kernels_one_result();   // reduce_scatter, reduce
CudaKernelList cuda_kernels_of_integers();  // all_reduce (two_shot, ring), reduce_scatter, reduce
CudaKernelList cuda_kernels_of_bytes();     // broadcast, all_gather, gather, scatter, all_to_all, barrier

/// A kernel that copies between a list of arrays and a whole; no rank takes part.
struct CudaListKernel {
  const char* name;
  const void* function;
  DType from;  // what is read; kU8: elements of any kind, as they are
  DType to;
};
struct CudaListKernels {
  const CudaListKernel* first;
  int count;
};
CudaListKernels cuda_kernels_of_lists();

/// All that ranks run, in the order of the C table's kernel_info; there those of lists follow.
int num_cuda_kernels();
const CudaKernel& cuda_kernel(int index);

/// The best one, or nullptr where there is none: sums know the (dtype, wire) pairs (f32, f32) (bf16, bf16) (f16, f16),
/// and in an all_reduce (f32, bf16) (f32, f16), by two_shot (f32, fp8); of integers and bool has_cuda_algo's and
/// (dtype, dtype).
const CudaKernel* find_cuda_kernel(const CudaKernelKey& key, int num_ranks);

/// Bytes of shared memory that a block needs.
size_t cuda_shared_bytes(int num_ranks);

/// One grid of num_channels x num_local_ranks blocks, guaranteed to be resident as a whole. Returns a cudaError_t.
int launch_cuda_kernel(const CudaKernel& kernel, const CudaJob& job, int num_channels, int num_local_ranks,
                       CUstream_st* stream);

}  // namespace dcomm
