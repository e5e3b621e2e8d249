// The kernels that exist and how one is launched; inside _cuda.so only. Floor: launch.
#pragma once

#include <cstddef>

#include "base/dtype.h"
#include "protocol/control.h"

struct CUstream_st;

namespace dcomm {

struct CudaJob;

struct CudaKernel {
  const char* name;
  const void* function;
  Algo algo;
  DType dtype;
  DType wire;
  int num_ranks;  // 0: any
};

/// All of them, in the order of the C table's kernel_info.
const CudaKernel* cuda_kernels();
int num_cuda_kernels();

/// The best one, or nullptr where (dtype, wire) is not one of (f32, f32) (f32, bf16) (f32, f16) (bf16, bf16)
/// (f16, f16).
const CudaKernel* find_cuda_kernel(Algo algo, DType dtype, DType wire, int num_ranks);

/// Bytes of shared memory that a block needs.
size_t cuda_shared_bytes(int num_ranks);

/// One grid for all local ranks, guaranteed to be resident as a whole. Returns a cudaError_t.
int launch_cuda_kernel(const CudaKernel& kernel, const CudaJob& job, int num_local_ranks, CUstream_st* stream);

}  // namespace dcomm
