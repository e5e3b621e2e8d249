// The ranks of a group on one GPU: what is made for them, and how it ends. Floor: launch.
//
// Everything is allocated and every kernel is loaded when the group is made: an allocation, or the loading of a
// kernel, between one rank's launch and another's could wait for a kernel that spins (CUDA's lazy loading).
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "exec/cuda_block_exec.cuh"
#include "launch/cuda_device_group.cuh"
#include "launch/cuda_kernels.h"
#include "launch/cuda_plan.h"
#include "launch/cuda_status.cuh"

namespace dcomm {

namespace {

constexpr auto kDestroyPatience = std::chrono::seconds(10);
constexpr auto kStopPatience = std::chrono::seconds(1);

cudaError_t find_launch_queue(int device, std::shared_ptr<LaunchQueue>* found) {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<LaunchQueue>> queues;
  const std::lock_guard lock(mutex);
  *found = queues[device].lock();
  if (*found != nullptr) return cudaSuccess;
  auto queue = std::make_shared<LaunchQueue>();
  int lowest = 0;
  int highest = 0;
  cudaError_t error = cudaDeviceGetStreamPriorityRange(&lowest, &highest);
  // Before the kernels that compute: the other ranks wait for these blocks, and a grid starts when all of it fits.
  if (error == cudaSuccess) error = cudaStreamCreateWithPriority(&queue->stream, cudaStreamNonBlocking, highest);
  if (error != cudaSuccess) return error;
  queues[device] = queue;
  *found = std::move(queue);
  return cudaSuccess;
}

/// Loads every kernel and finds how many blocks of any that a group of num_ranks may launch are resident at once.
DcommCudaStatus load_kernels(int num_ranks, int num_multiprocessors, int* resident, const CudaMessage& message) {
  *resident = INT32_MAX;
  for (int k = 0; k < num_cuda_kernels(); ++k) {
    const CudaKernel& kernel = cuda_kernel(k);
    cudaFuncAttributes attributes{};
    cudaError_t error = cudaFuncGetAttributes(&attributes, kernel.function);
    if (error != cudaSuccess) return message.failed(kernel.name, error);
    if (attributes.localSizeBytes != 0) {
      return message.say(kDcommCudaFailed,
                         "%s uses %zu bytes of local memory, whose allocation could hang; build for this GPU's "
                         "architecture with DCOMM_CUDA_ARCHS",
                         kernel.name, attributes.localSizeBytes);
    }
    if (find_cuda_kernel(kernel.key, num_ranks) != &kernel) continue;
    int per_multiprocessor = 0;
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel.function, gpu::kBlockThreads,
                                                          cuda_shared_bytes(num_ranks));
    if (error != cudaSuccess) return message.failed(kernel.name, error);
    *resident = std::min(*resident, per_multiprocessor * num_multiprocessors);
  }
  return kDcommCudaOk;
}

DcommCudaStatus choose_shape(const DcommCudaGroupOptions& options, const CudaLimits& limits, DcommCudaGroup* group,
                             const CudaMessage& message) {
  const int n = options.num_ranks;
  const int channels = options.num_channels != 0
                           ? options.num_channels
                           : choose_cuda_channels(limits.resident_blocks, n, options.max_channels);
  if (n > kMaxLocalRanks || static_cast<int64_t>(n) * channels > limits.resident_blocks) {
    return message.say(kDcommCudaTooLarge,
                       "%d ranks with %d channels each need %lld thread blocks at once, but cuda:%d holds %d (and at "
                       "most %d ranks); start fewer ranks%s",
                       n, channels, static_cast<long long>(n) * channels, options.device, limits.resident_blocks,
                       kMaxLocalRanks,
                       options.num_channels > 1 ? ", or choose fewer channels (DCOMM_CUDA_CHANNELS)" : "");
  }
  if (!is_cuda_slot_bytes(options.slot_bytes) && options.slot_bytes != 0) {
    return message.say(kDcommCudaInvalid, "slot_bytes is %llu, expected a multiple of %zu up to 1 GiB",
                       static_cast<unsigned long long>(options.slot_bytes), kCudaMinSlotBytes);
  }
  group->device = options.device;
  group->world_size = group->num_local_ranks = n;
  group->num_channels = channels;
  group->slot_bytes = options.slot_bytes != 0
                          ? options.slot_bytes
                          : choose_cuda_slot_bytes(static_cast<size_t>(limits.l2_bytes), n, n, channels);
  return kDcommCudaOk;
}

/// Plain memory, zeroed when the queue's stream has come to it.
cudaError_t allocate_windows(DcommCudaGroup* group, size_t window_bytes) {
  cudaError_t error = find_launch_queue(group->device, &group->queue);
  for (int r = 0; r < group->world_size && error == cudaSuccess; ++r) {
    void* window = nullptr;
    if ((error = cudaMalloc(&window, window_bytes)) != cudaSuccess) return error;
    group->allocated.push_back(static_cast<std::byte*>(window));
    group->windows.push_back(static_cast<std::byte*>(window));
    error = cudaMemsetAsync(window, 0, window_bytes, group->queue->stream);
  }
  return error;
}

/// cudaErrorNotReady when the last kernel has not ended in time.
cudaError_t wait_done(const DcommCudaGroup& group, std::chrono::nanoseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    const cudaError_t error = cudaEventQuery(group.done);
    if (error != cudaErrorNotReady || std::chrono::steady_clock::now() >= deadline) return error;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

}  // namespace

DcommCudaStatus find_cuda_limits(int device, int world_size, CudaLimits* limits, const CudaMessage& message) {
  int cooperative = 0;
  cudaError_t error = cudaDeviceGetAttribute(&limits->num_multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&limits->l2_bytes, cudaDevAttrL2CacheSize, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  if (error != cudaSuccess) return message.failed("cudaDeviceGetAttribute", error);
  if (cooperative == 0) {
    return message.say(kDcommCudaNoDevice,
                       "cuda:%d has no cooperative launch, which kernels that wait for each other "
                       "need",
                       device);
  }
  return load_kernels(world_size, limits->num_multiprocessors, &limits->resident_blocks, message);
}

cudaError_t prepare_cuda_group(DcommCudaGroup* group) {
  cudaError_t error = find_launch_queue(group->device, &group->queue);
  if (error != cudaSuccess) return error;
  const cudaStream_t stream = group->queue->stream;
  const auto num_local = static_cast<size_t>(group->num_local_ranks);
  const size_t counter_bytes =
      num_local * static_cast<size_t>(group->num_channels) * cuda_counter_words(group->world_size) * sizeof(uint64_t);
  if ((error = cudaMalloc(&group->counters, counter_bytes)) != cudaSuccess) return error;
  if ((error = cudaMemsetAsync(group->counters, 0, counter_bytes, stream)) != cudaSuccess) return error;
  const size_t table_bytes = group->windows.size() * sizeof(std::byte*);
  if ((error = cudaMalloc(&group->window_table, table_bytes)) != cudaSuccess) return error;
  error = cudaMemcpyAsync(group->window_table, group->windows.data(), table_bytes, cudaMemcpyHostToDevice, stream);
  if (error != cudaSuccess) return error;

  error = cudaHostAlloc(&group->host_words, sizeof(HostWords), cudaHostAllocMapped | cudaHostAllocPortable);
  if (error != cudaSuccess) return error;
  *group->host_words = HostWords{};
  error = cudaHostGetDevicePointer(&group->device_words, group->host_words, 0);
  if (error != cudaSuccess) return error;

  for (size_t r = 0; r <= num_local; ++r) {
    cudaEvent_t event = nullptr;
    if ((error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming)) != cudaSuccess) return error;
    if (r < num_local) {
      group->ready.push_back(event);
    } else {
      group->done = event;
    }
  }
  return cudaStreamSynchronize(stream);
}

DcommCudaStatus create_cuda_group(const DcommCudaGroupOptions& options, DcommCudaGroup** group,
                                  DcommCudaGroupInfo* info, const CudaMessage& message) {
  int num_devices = 0;
  DcommCudaStatus status = count_cuda_devices(&num_devices, message);
  if (status != kDcommCudaOk) return status;
  if (options.device < 0 || options.device >= num_devices || options.num_ranks < 1 || options.num_channels < 0 ||
      options.max_channels < 0) {
    return message.say(kDcommCudaInvalid, "device %d of %d, %d ranks, %d channels", options.device, num_devices,
                       options.num_ranks, options.num_channels);
  }
  const ScopedDevice scope(options.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  CudaLimits limits;
  auto made = std::make_unique<DcommCudaGroup>();
  status = find_cuda_limits(options.device, options.num_ranks, &limits, message);
  if (status != kDcommCudaOk) return status;
  if ((status = choose_shape(options, limits, made.get(), message)) != kDcommCudaOk) return status;
  const size_t window_bytes = cuda_window_layout(made->world_size, made->num_channels, made->slot_bytes).window_bytes();
  cudaError_t error = allocate_windows(made.get(), window_bytes);
  if (error == cudaSuccess) error = prepare_cuda_group(made.get());
  if (error != cudaSuccess) {
    return message.say(kDcommCudaFailed, "allocating %d windows of %zu bytes on cuda:%d failed: %s", made->world_size,
                       window_bytes, options.device, cudaGetErrorString(error));
  }
  *info = {made->num_channels, limits.resident_blocks, made->slot_bytes, window_bytes};
  *group = made.release();
  return kDcommCudaOk;
}

void destroy_cuda_group(DcommCudaGroup* group) {
  if (group == nullptr) return;
  const ScopedDevice scope(group->device);
  if (wait_done(*group, kDestroyPatience) == cudaErrorNotReady) {
    stop_cuda_group(*group);
    // Freed memory under a running kernel would be worse than memory that stays allocated.
    if (wait_done(*group, kStopPatience) == cudaErrorNotReady) return;
  }
  delete group;
}

DcommCudaStatus synchronize_cuda_group(DcommCudaGroup& group, uint64_t timeout_ns, const CudaMessage& message) {
  const ScopedDevice scope(group.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  const auto timeout = std::chrono::nanoseconds(static_cast<int64_t>(std::min<uint64_t>(timeout_ns, INT64_MAX / 4)));
  const cudaError_t error = wait_done(group, timeout);
  if (error == cudaSuccess) return kDcommCudaOk;
  if (error != cudaErrorNotReady) return message.failed("waiting for the GPU", error);
  return message.say(kDcommCudaTimeout, "cuda:%d had not finished after %.3f s", group.device,
                     static_cast<double>(timeout_ns) * 1e-9);
}

void stop_cuda_group(DcommCudaGroup& group) { __atomic_store_n(&group.host_words->stop, 1u, __ATOMIC_RELEASE); }

DcommCudaFailure poll_cuda_group(const DcommCudaGroup& group) {
  const uint64_t word = __atomic_load_n(&group.host_words->error, __ATOMIC_ACQUIRE);
  return {static_cast<int32_t>(word >> 56), static_cast<int32_t>((word >> 48) & 0xffu),
          static_cast<int32_t>((word >> 32) & 0xffffu), static_cast<int32_t>((word >> 16) & 0xffffu),
          static_cast<uint32_t>(word & 0xffffu)};
}

}  // namespace dcomm
