// The one symbol of _cuda.so: the C table, with no exception crossing. Floor: launch.
#include <new>

#include "base/error.h"
#include "launch/cuda_api.h"
#include "launch/cuda_kernels.h"
#include "launch/cuda_status.cuh"

namespace dcomm {

namespace {

/// The CUDA runtime throws nothing; containers and windows may.
template <class F>
int32_t guarded(const CudaMessage& message, const F& f) {
  try {
    return f();
  } catch (const Error& error) {
    return message.say(kDcommCudaFailed, "%s", error.what());
  } catch (const std::bad_alloc&) {
    return message.say(kDcommCudaFailed, "out of host memory");
  } catch (...) {
    return message.say(kDcommCudaFailed, "internal error in the CUDA part; please report it");
  }
}

int32_t device_count(int32_t* count, char* text, size_t num_bytes) {
  return count_cuda_devices(count, CudaMessage(text, num_bytes));
}

int32_t group_create(const DcommCudaGroupOptions* options, DcommCudaGroup** group, DcommCudaGroupInfo* info, char* text,
                     size_t num_bytes) {
  const CudaMessage message(text, num_bytes);
  return guarded(message, [&] { return create_cuda_group(*options, group, info, message); });
}

void group_destroy(DcommCudaGroup* group) { destroy_cuda_group(group); }

int32_t run(DcommCudaGroup* group, const DcommCudaCall* call, char* text, size_t num_bytes) {
  const CudaMessage message(text, num_bytes);
  return guarded(message, [&] { return run_cuda_group(*group, *call, message); });
}

void poll_error(const DcommCudaGroup* group, DcommCudaFailure* failure) { *failure = poll_cuda_group(*group); }

int32_t synchronize(DcommCudaGroup* group, uint64_t timeout_ns, char* text, size_t num_bytes) {
  return synchronize_cuda_group(*group, timeout_ns, CudaMessage(text, num_bytes));
}

void stop(DcommCudaGroup* group) { stop_cuda_group(*group); }

int32_t kernel_info(int32_t device, uint32_t index, DcommCudaKernelInfo* info, char* text, size_t num_bytes) {
  return describe_cuda_kernel(device, index, info, CudaMessage(text, num_bytes));
}

int32_t copy_bandwidth(int32_t device, uint64_t nbytes, double* bytes_per_second, char* text, size_t num_bytes) {
  return measure_copy_bandwidth(device, nbytes, bytes_per_second, CudaMessage(text, num_bytes));
}

int32_t list_create(const DcommCudaListOptions* options, DcommCudaList** list, char* text, size_t num_bytes) {
  const CudaMessage message(text, num_bytes);
  return guarded(message, [&] { return create_cuda_list(*options, list, message); });
}

void list_destroy(DcommCudaList* list) { destroy_cuda_list(list); }

int32_t list_copy(const DcommCudaList* list, const DcommCudaListCopy* copy, char* text, size_t num_bytes) {
  return copy_cuda_list(*list, *copy, CudaMessage(text, num_bytes));
}

int32_t pointer_device(const void* address, int32_t* device, char* text, size_t num_bytes) {
  return find_pointer_device(address, device, CudaMessage(text, num_bytes));
}

int32_t order_streams(int32_t device, void* before, void* after, char* text, size_t num_bytes) {
  return chain_cuda_streams(device, before, after, CudaMessage(text, num_bytes));
}

int32_t device_facts(int32_t device, int32_t world_size, DcommCudaDeviceFacts* facts, char* text, size_t num_bytes) {
  const CudaMessage message(text, num_bytes);
  return guarded(message, [&] { return describe_cuda_device(device, world_size, facts, message); });
}

int32_t window_create(const DcommCudaWindowOptions* options, DcommCudaWindow** window, char* text, size_t num_bytes) {
  const CudaMessage message(text, num_bytes);
  return guarded(message, [&] { return make_cuda_window(*options, window, message); });
}

int32_t window_export(const DcommCudaWindow* window, DcommCudaWindowHandle* handle, char* text, size_t num_bytes) {
  const CudaMessage message(text, num_bytes);
  return guarded(message, [&] { return export_cuda_window(*window, handle, message); });
}

int32_t window_import(int32_t device, const DcommCudaWindowHandle* handle, DcommCudaWindow** window, char* text,
                      size_t num_bytes) {
  const CudaMessage message(text, num_bytes);
  return guarded(message, [&] { return import_cuda_window(device, *handle, window, message); });
}

void window_destroy(DcommCudaWindow* window) { destroy_cuda_window(window); }

int32_t group_join(const DcommCudaMembership* membership, DcommCudaGroup** group, char* text, size_t num_bytes) {
  const CudaMessage message(text, num_bytes);
  return guarded(message, [&] { return join_cuda_group(*membership, group, message); });
}

void group_keep_windows(DcommCudaGroup* group) { keep_cuda_windows(*group); }

int32_t launch_floor(int32_t device, double* empty_launch_us, double* round_trip_us, char* text, size_t num_bytes) {
  return measure_launch_floor(device, empty_launch_us, round_trip_us, CudaMessage(text, num_bytes));
}

int32_t event_create(int32_t device, DcommCudaEvent** event, char* text, size_t num_bytes) {
  const CudaMessage message(text, num_bytes);
  return guarded(message, [&] { return create_cuda_event(device, event, message); });
}

void event_destroy(DcommCudaEvent* event) { destroy_cuda_event(event); }

int32_t event_record(DcommCudaEvent* event, void* stream, char* text, size_t num_bytes) {
  return record_cuda_event(*event, stream, CudaMessage(text, num_bytes));
}

int32_t event_wait(const DcommCudaEvent* event, void* stream, char* text, size_t num_bytes) {
  return wait_for_cuda_event(*event, stream, CudaMessage(text, num_bytes));
}

int32_t event_query(const DcommCudaEvent* event, int32_t* state, char* text, size_t num_bytes) {
  return query_cuda_event(*event, state, CudaMessage(text, num_bytes));
}

void* window_base(const DcommCudaWindow* window) { return cuda_window_base(*window); }

int32_t device_wait(int32_t device, char* text, size_t num_bytes) {
  return wait_for_cuda_device(device, CudaMessage(text, num_bytes));
}

void window_keep(DcommCudaWindow* window) { keep_cuda_window(*window); }

}  // namespace

}  // namespace dcomm

extern "C" __attribute__((visibility("default"))) const DcommCudaTable* dcomm_cuda_table(uint32_t abi) {
  using namespace dcomm;
  if (abi != kDcommCudaAbi) return nullptr;
  static const DcommCudaTable table = {
      kDcommCudaAbi,
      static_cast<uint32_t>(num_cuda_kernels() + cuda_kernels_of_lists().count),
      &device_count,
      &group_create,
      &group_destroy,
      &run,
      &poll_error,
      &synchronize,
      &stop,
      &kernel_info,
      &copy_bandwidth,
      &list_create,
      &list_destroy,
      &list_copy,
      &pointer_device,
      &order_streams,
      &device_facts,
      &window_create,
      &window_export,
      &window_import,
      &window_destroy,
      &group_join,
      &group_keep_windows,
      &launch_floor,
      &event_create,
      &event_destroy,
      &event_record,
      &event_wait,
      &event_query,
      &window_base,
      &device_wait,
      &window_keep,
  };
  return &table;
}
