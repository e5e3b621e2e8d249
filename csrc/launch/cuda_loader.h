// Finds and opens the CUDA part, _cuda.so, on first GPU use. Floor: launch (plain C++; no CUDA header).
#pragma once

#include <string>

#include "launch/cuda_api.h"

namespace dcomm {

/// The table of _cuda.so beside this library. Throws kCuda, in one sentence with a next step, where the build has no
/// CUDA part or it cannot be loaded. Any thread; what the first call found holds for the process.
const DcommCudaTable& cuda_table();

/// For tests: cuda_table() is that of the library at `path` from now on; "": again what it was. Groups keep theirs.
void use_cuda_library(const std::string& path);

/// How many GPUs this process sees: 1 or more. Throws kCuda where there is no CUDA part, no driver, or no GPU.
int cuda_device_count();

/// The GPU whose memory holds `address`. Throws kInvalidArgument where none does.
int cuda_pointer_device(const void* address);
/// Stream `after` waits for what stream `before` has been given so far; asynchronous to the host.
void order_cuda_streams(int device, void* before, void* after);

/// In microseconds: the floor under an operation of a few bytes is their sum.
struct CudaLaunchFloor {
  double empty_launch_us;  // cooperative, replayed by a CUDA graph
  double round_trip_us;    // of a flag between two blocks
};
/// Measured now; waits for the GPU.
CudaLaunchFloor measure_cuda_launch_floor(int device);

/// Throws kCuda (kInvalidArgument for kDcommCudaInvalid, kTimeout for kDcommCudaTimeout) unless status is kDcommCudaOk.
void check_cuda(int32_t status, const char* message);

}  // namespace dcomm
