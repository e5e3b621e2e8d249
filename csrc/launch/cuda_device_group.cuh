// What a group of ranks on one GPU owns. Floor: launch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "launch/cuda_api.h"
#include "launch/cuda_status.cuh"
#include "memory/cuda_window.h"
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

struct DcommCudaWindow {
  int device = 0;
  std::unique_ptr<dcomm::CudaWindow> memory;

  ~DcommCudaWindow() {
    const dcomm::ScopedDevice scope(device);
    memory.reset();
  }
};

struct DcommCudaGroup {
  int device = 0;
  int world_size = 0;
  int first_rank = 0;
  int num_local_ranks = 0;
  int num_channels = 0;
  size_t slot_bytes = 0;
  std::vector<std::byte*> windows;                               // by rank
  std::vector<std::byte*> allocated;                             // those that are plain memory of this process
  std::vector<std::unique_ptr<DcommCudaWindow>> shared_windows;  // or those that other processes map too, by rank
  std::byte** window_table = nullptr;                            // on the device
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
    for (std::byte* window : allocated) cudaFree(window);
    // What others have made is let go before what is this process' own.
    for (auto& window : shared_windows) {
      if (window != nullptr && window->memory->is_imported()) window.reset();
    }
    cudaFree(window_table);
    cudaFree(counters);
    cudaFreeHost(host_words);
  }
};

namespace dcomm {

struct CudaLimits {
  int num_multiprocessors = 0;
  int l2_bytes = 0;
  int resident_blocks = 0;  // of the kernel that needs most, of those that a group of this size may launch
};

/// Loads every kernel. The caller has made `device` current.
DcommCudaStatus find_cuda_limits(int device, int world_size, CudaLimits* limits, const CudaMessage& message);

/// Counters, the table of windows, host words and events, for a group whose shape and windows are set.
cudaError_t prepare_cuda_group(DcommCudaGroup* group);

}  // namespace dcomm
