// How functions of _cuda.so report: a status and one sentence. Floor: launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "launch/cuda_api.h"

namespace dcomm {

/// Where a caller of the C table wants its message.
class CudaMessage {
 public:
  CudaMessage(char* text, size_t num_bytes) : text_(text), num_bytes_(num_bytes) {}

  __attribute__((format(printf, 3, 4))) DcommCudaStatus say(DcommCudaStatus status, const char* format, ...) const {
    if (text_ == nullptr || num_bytes_ == 0) return status;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text_, num_bytes_, format, arguments);
    va_end(arguments);
    return status;
  }
  DcommCudaStatus failed(const char* what, cudaError_t error) const {
    return say(kDcommCudaFailed, "%s failed: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
  }

 private:
  char* const text_;
  const size_t num_bytes_;
};

/// Makes `device` the calling thread's current one and puts the previous one back.
class ScopedDevice {
 public:
  explicit ScopedDevice(int device) : device_(device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ == cudaSuccess) status_ = cudaSetDevice(device);
  }
  ~ScopedDevice() {
    if (status_ == cudaSuccess && previous_ != device_) cudaSetDevice(previous_);
  }
  ScopedDevice(const ScopedDevice&) = delete;
  ScopedDevice& operator=(const ScopedDevice&) = delete;
  cudaError_t status() const { return status_; }

 private:
  const int device_;
  int previous_ = 0;
  cudaError_t status_ = cudaSuccess;
};

/// Sets *count to the number of GPUs, at least 1, or says why there is none.
DcommCudaStatus count_cuda_devices(int* count, const CudaMessage& message);
DcommCudaStatus describe_cuda_kernel(int device, uint32_t index, DcommCudaKernelInfo* info, const CudaMessage& message);
DcommCudaStatus measure_copy_bandwidth(int device, uint64_t nbytes, double* bytes_per_second,
                                       const CudaMessage& message);
DcommCudaStatus measure_launch_floor(int device, double* empty_launch_us, double* round_trip_us,
                                     const CudaMessage& message);

DcommCudaStatus find_pointer_device(const void* address, int* device, const CudaMessage& message);
DcommCudaStatus wait_for_cuda_device(int device, const CudaMessage& message);
DcommCudaStatus chain_cuda_streams(int device, void* before, void* after, const CudaMessage& message);

DcommCudaStatus create_cuda_group(const DcommCudaGroupOptions& options, DcommCudaGroup** group,
                                  DcommCudaGroupInfo* info, const CudaMessage& message);
DcommCudaStatus describe_cuda_device(int device, int world_size, DcommCudaDeviceFacts* facts,
                                     const CudaMessage& message);
DcommCudaStatus make_cuda_window(const DcommCudaWindowOptions& options, DcommCudaWindow** window,
                                 const CudaMessage& message);
DcommCudaStatus export_cuda_window(const DcommCudaWindow& window, DcommCudaWindowHandle* handle,
                                   const CudaMessage& message);
DcommCudaStatus import_cuda_window(int device, const DcommCudaWindowHandle& handle, DcommCudaWindow** window,
                                   const CudaMessage& message);
void destroy_cuda_window(DcommCudaWindow* window);
void* cuda_window_base(const DcommCudaWindow& window);
void keep_cuda_window(DcommCudaWindow& window);
DcommCudaStatus join_cuda_group(const DcommCudaMembership& membership, DcommCudaGroup** group,
                                const CudaMessage& message);
void keep_cuda_windows(DcommCudaGroup& group);
void destroy_cuda_group(DcommCudaGroup* group);
DcommCudaStatus run_cuda_group(DcommCudaGroup& group, const DcommCudaCall& call, const CudaMessage& message);
DcommCudaStatus synchronize_cuda_group(DcommCudaGroup& group, uint64_t timeout_ns, const CudaMessage& message);
void stop_cuda_group(DcommCudaGroup& group);
DcommCudaFailure poll_cuda_group(const DcommCudaGroup& group);

DcommCudaStatus create_cuda_event(int device, DcommCudaEvent** event, const CudaMessage& message);
void destroy_cuda_event(DcommCudaEvent* event);
DcommCudaStatus record_cuda_event(DcommCudaEvent& event, void* stream, const CudaMessage& message);
DcommCudaStatus wait_for_cuda_event(const DcommCudaEvent& event, void* stream, const CudaMessage& message);
DcommCudaStatus query_cuda_event(const DcommCudaEvent& event, int32_t* state, const CudaMessage& message);

DcommCudaStatus create_cuda_list(const DcommCudaListOptions& options, DcommCudaList** list, const CudaMessage& message);
void destroy_cuda_list(DcommCudaList* list);
DcommCudaStatus copy_cuda_list(const DcommCudaList& list, const DcommCudaListCopy& copy, const CudaMessage& message);

}  // namespace dcomm
