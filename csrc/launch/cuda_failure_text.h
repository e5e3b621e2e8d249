// What kernels report, in words. Floor: launch (plain C++; no CUDA header).
#pragma once

#include "launch/cuda_api.h"
#include "launch/cuda_call_queues.h"

namespace dcomm {

/// failure.code is not 0. kTimeout, kMismatch or kAborted.
CudaOutcome describe_cuda_failure(const DcommCudaFailure& failure);

}  // namespace dcomm
