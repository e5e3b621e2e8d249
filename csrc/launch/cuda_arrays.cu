// What other libraries' arrays need: which GPU holds them, and an order between two streams. Floor: launch.
#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <mutex>

#include "launch/cuda_status.cuh"

namespace dcomm {

namespace {

/// One event for each GPU, made at its first use: a stream that is told to wait remembers what was recorded by then.
struct ChainingEvents {
  std::mutex mutex;  // held from the record to the wait
  std::map<int, cudaEvent_t> made;
  static ChainingEvents& instance() {
    static ChainingEvents& all = *new ChainingEvents;  // never freed: other threads may come late
    return all;
  }
};

}  // namespace

DcommCudaStatus find_pointer_device(const void* address, int* device, const CudaMessage& message) {
  cudaPointerAttributes attributes{};
  const cudaError_t error = cudaPointerGetAttributes(&attributes, address);
  if (error != cudaSuccess) return message.failed("cudaPointerGetAttributes", error);
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
    return message.say(kDcommCudaInvalid,
                       "address %p is not in the memory of a GPU, though the array says so; pass a CPU array as such",
                       address);
  }
  *device = attributes.device;
  return kDcommCudaOk;
}

DcommCudaStatus wait_for_cuda_device(int device, const CudaMessage& message) {
  const ScopedDevice scope(device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  // An array may be dropped while another thread captures a graph, which a wait would spoil otherwise.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaError_t error = cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) return message.failed("cudaThreadExchangeStreamCaptureMode", error);
  error = cudaDeviceSynchronize();
  cudaThreadExchangeStreamCaptureMode(&mode);
  return error == cudaSuccess ? kDcommCudaOk : message.failed("cudaDeviceSynchronize", error);
}

DcommCudaStatus chain_cuda_streams(int device, void* before, void* after, const CudaMessage& message) {
  const ScopedDevice scope(device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  ChainingEvents& events = ChainingEvents::instance();
  const std::lock_guard lock(events.mutex);
  cudaEvent_t& event = events.made[device];
  cudaError_t error = cudaSuccess;
  if (event == nullptr) error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (error != cudaSuccess) return message.failed("cudaEventCreate", error);
  error = cudaEventRecord(event, static_cast<cudaStream_t>(before));
  if (error == cudaSuccess) error = cudaStreamWaitEvent(static_cast<cudaStream_t>(after), event, 0);
  return error == cudaSuccess ? kDcommCudaOk : message.failed("ordering two streams", error);
}

}  // namespace dcomm
