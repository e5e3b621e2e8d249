// What other libraries' arrays need: which GPU holds them, and an order between two streams. Floor: launch.
#include <cuda_runtime.h>

#include <cstddef>

#include "launch/cuda_status.cuh"

namespace dcomm {

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

/// The event is freed once both streams are past it.
DcommCudaStatus chain_cuda_streams(int device, void* before, void* after, const CudaMessage& message) {
  const ScopedDevice scope(device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  cudaEvent_t event = nullptr;
  cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (error != cudaSuccess) return message.failed("cudaEventCreate", error);
  error = cudaEventRecord(event, static_cast<cudaStream_t>(before));
  if (error == cudaSuccess) error = cudaStreamWaitEvent(static_cast<cudaStream_t>(after), event, 0);
  cudaEventDestroy(event);
  return error == cudaSuccess ? kDcommCudaOk : message.failed("ordering two streams", error);
}

}  // namespace dcomm
