// Events that outlive the call that recorded them: how streams and the host learn that an operation is over.
// Floor: launch.
#include "launch/cuda_event.cuh"

#include <cuda_runtime.h>

#include <memory>

#include "launch/cuda_status.cuh"

namespace dcomm {

namespace {

/// While another thread captures a graph in its strictest mode, CUDA refuses to look at an event that is none of the
/// graph's, and spoils the graph.
class UnhinderedByCaptures {
 public:
  UnhinderedByCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~UnhinderedByCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  UnhinderedByCaptures(const UnhinderedByCaptures&) = delete;
  UnhinderedByCaptures& operator=(const UnhinderedByCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

DcommCudaStatus create_cuda_event(int device, DcommCudaEvent** event, const CudaMessage& message) {
  const ScopedDevice scope(device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  auto made = std::make_unique<DcommCudaEvent>();
  made->device = device;
  const cudaError_t error = cudaEventCreateWithFlags(&made->event, cudaEventDisableTiming);
  if (error != cudaSuccess) return message.failed("cudaEventCreate", error);
  *event = made.release();
  return kDcommCudaOk;
}

void destroy_cuda_event(DcommCudaEvent* event) {
  if (event == nullptr) return;
  const ScopedDevice scope(event->device);
  cudaEventDestroy(event->event);
  delete event;
}

DcommCudaStatus record_cuda_event(DcommCudaEvent& event, void* handle, const CudaMessage& message) {
  const ScopedDevice scope(event.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  const auto stream = static_cast<cudaStream_t>(handle);
  if (stream == cudaStreamPerThread) {
    return message.say(kDcommCudaInvalid,
                       "got the per-thread default stream, which means another stream in the thread that launches for "
                       "all ranks; pass a stream of its own");
  }
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t asked = cudaStreamIsCapturing(stream, &status);
  if (asked == cudaErrorStreamCaptureImplicit || status != cudaStreamCaptureStatusNone) {
    return message.say(
        kDcommCudaInvalid,
        "a CUDA graph is being captured, of which one rank's asynchronous call cannot be a part; let one "
        "thread capture for all ranks, inside dcomm.group");
  }
  if (asked != cudaSuccess) return message.failed("cudaStreamIsCapturing", asked);
  event.is_captured = false;
  const cudaError_t error = cudaEventRecord(event.event, stream);
  return error == cudaSuccess ? kDcommCudaOk : message.failed("cudaEventRecord", error);
}

DcommCudaStatus wait_for_cuda_event(const DcommCudaEvent& event, void* stream, const CudaMessage& message) {
  const ScopedDevice scope(event.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  const cudaError_t error = cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), event.event, 0);
  if (error == cudaErrorStreamCaptureIsolation) {
    return message.say(kDcommCudaInvalid,
                       "the stream is capturing a CUDA graph, but the operation was launched outside of it; wait for "
                       "it before the capture begins");
  }
  return error == cudaSuccess ? kDcommCudaOk : message.failed("cudaStreamWaitEvent", error);
}

DcommCudaStatus query_cuda_event(const DcommCudaEvent& event, int32_t* state, const CudaMessage& message) {
  if (event.is_captured) {
    *state = kDcommCudaEventCaptured;
    return kDcommCudaOk;
  }
  const UnhinderedByCaptures relaxed;
  const cudaError_t error = cudaEventQuery(event.event);
  if (error != cudaSuccess && error != cudaErrorNotReady) return message.failed("cudaEventQuery", error);
  *state = error == cudaSuccess ? kDcommCudaEventOver : kDcommCudaEventAhead;
  return kDcommCudaOk;
}

}  // namespace dcomm
