// What a group of ranks on one GPU owns. Floor: launch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "launch/cuda_api.h"
#include "schedule/window_layout.h"

namespace dcomm {

/// All operations of a process on a device go through one stream, in program order: two grids that spin could
/// otherwise keep each other from starting.
struct LaunchQueue {
  std::mutex mutex;  // held while one operation is enqueued
  cudaStream_t stream = nullptr;
  ~LaunchQueue() {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
};

/// Pinned host memory that kernels read and write.
struct alignas(kFlagBytes) HostWords {
  uint64_t error;
  alignas(kFlagBytes) uint32_t stop;
};

}  // namespace dcomm

struct DcommCudaGroup {
  int device = 0;
  int num_ranks = 0;
  int num_channels = 0;
  size_t slot_bytes = 0;
  std::vector<std::byte*> windows;
  std::byte** window_table = nullptr;  // on the device
  uint64_t* counters = nullptr;
  dcomm::HostWords* host_words = nullptr;
  dcomm::HostWords* device_words = nullptr;  // the same memory as kernels see it
  std::shared_ptr<dcomm::LaunchQueue> queue;
  std::vector<cudaEvent_t> ready;  // by rank
  cudaEvent_t done = nullptr;

  /// The caller has made `device` current and waited for the last kernel.
  ~DcommCudaGroup() {
    for (cudaEvent_t event : ready) cudaEventDestroy(event);
    if (done != nullptr) cudaEventDestroy(done);
    for (std::byte* window : windows) cudaFree(window);
    cudaFree(window_table);
    cudaFree(counters);
    cudaFreeHost(host_words);
  }
};
