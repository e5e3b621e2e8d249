// The ranks of one process on one GPU: what is made for them, and how it ends. Floor: launch.
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
#include "launch/cuda_status.cuh"

namespace dcomm {

namespace {

constexpr int kDefaultChannels = 32;
constexpr size_t kMinSlotBytes = 4096;
constexpr size_t kMaxSlotBytes = size_t{128} << 10;
constexpr auto kDestroyPatience = std::chrono::seconds(10);
constexpr auto kStopPatience = std::chrono::seconds(1);

cudaError_t find_launch_queue(int device, std::shared_ptr<LaunchQueue>* found) {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<LaunchQueue>> queues;
  const std::lock_guard lock(mutex);
  *found = queues[device].lock();
  if (*found != nullptr) return cudaSuccess;
  auto queue = std::make_shared<LaunchQueue>();
  const cudaError_t error = cudaStreamCreateWithFlags(&queue->stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return error;
  queues[device] = queue;
  *found = std::move(queue);
  return cudaSuccess;
}

constexpr size_t floor_pow2(size_t value) {
  size_t power = 1;
  while (power <= value / 2) power *= 2;
  return power;
}

/// All slots that two_shot uses, of all ranks, shall stay in L2 (docs/decisions.md).
size_t choose_slot_bytes(size_t l2_bytes, int num_ranks, int num_channels) {
  const auto n = static_cast<size_t>(num_ranks);
  const size_t share = l2_bytes / 2 / (n * static_cast<size_t>(num_channels) * 2 * n);
  return std::clamp(floor_pow2(share), kMinSlotBytes, kMaxSlotBytes);
}

struct DeviceLimits {
  int num_multiprocessors = 0;
  int l2_bytes = 0;
  int cooperative = 0;
};

DcommCudaStatus read_limits(int device, DeviceLimits* limits, const CudaMessage& message) {
  cudaError_t error = cudaDeviceGetAttribute(&limits->num_multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&limits->l2_bytes, cudaDevAttrL2CacheSize, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&limits->cooperative, cudaDevAttrCooperativeLaunch, device);
  if (error != cudaSuccess) return message.failed("cudaDeviceGetAttribute", error);
  if (limits->cooperative != 0) return kDcommCudaOk;
  return message.say(kDcommCudaNoDevice, "cuda:%d has no cooperative launch, which several ranks on a GPU need",
                     device);
}

/// Loads every kernel and finds how many blocks of any that this group may launch are resident at once.
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

DcommCudaStatus choose_shape(const DcommCudaGroupOptions& options, const DeviceLimits& limits, int resident,
                             DcommCudaGroup* group, const CudaMessage& message) {
  const int n = options.num_ranks;
  const int channels =
      options.num_channels != 0 ? options.num_channels : std::max(1, std::min(kDefaultChannels, resident / n));
  if (n > kMaxLocalRanks || static_cast<int64_t>(n) * channels > resident) {
    return message.say(kDcommCudaTooLarge,
                       "%d ranks with %d channels each need %lld thread blocks at once, but cuda:%d holds %d (and at "
                       "most %d ranks); start fewer ranks%s",
                       n, channels, static_cast<long long>(n) * channels, options.device, resident, kMaxLocalRanks,
                       options.num_channels > 1 ? ", or choose fewer channels (DCOMM_CUDA_CHANNELS)" : "");
  }
  if (options.slot_bytes % kMinSlotBytes != 0 || options.slot_bytes > (size_t{1} << 30)) {
    return message.say(kDcommCudaInvalid, "slot_bytes is %llu, expected a multiple of %zu up to 1 GiB",
                       static_cast<unsigned long long>(options.slot_bytes), kMinSlotBytes);
  }
  group->device = options.device;
  group->num_ranks = n;
  group->num_channels = channels;
  group->slot_bytes = options.slot_bytes != 0 ? options.slot_bytes
                                              : choose_slot_bytes(static_cast<size_t>(limits.l2_bytes), n, channels);
  return kDcommCudaOk;
}

/// Windows and counters are zeroed once, here.
cudaError_t allocate(DcommCudaGroup* group, size_t window_bytes) {
  const auto n = static_cast<size_t>(group->num_ranks);
  cudaError_t error = find_launch_queue(group->device, &group->queue);
  if (error != cudaSuccess) return error;
  const cudaStream_t stream = group->queue->stream;
  for (size_t r = 0; r < n; ++r) {
    void* window = nullptr;
    if ((error = cudaMalloc(&window, window_bytes)) != cudaSuccess) return error;
    group->windows.push_back(static_cast<std::byte*>(window));
    if ((error = cudaMemsetAsync(window, 0, window_bytes, stream)) != cudaSuccess) return error;
  }
  const size_t counter_bytes =
      n * static_cast<size_t>(group->num_channels) * cuda_counter_words(group->num_ranks) * sizeof(uint64_t);
  if ((error = cudaMalloc(&group->counters, counter_bytes)) != cudaSuccess) return error;
  if ((error = cudaMemsetAsync(group->counters, 0, counter_bytes, stream)) != cudaSuccess) return error;
  if ((error = cudaMalloc(&group->window_table, n * sizeof(std::byte*))) != cudaSuccess) return error;
  error = cudaMemcpyAsync(group->window_table, group->windows.data(), n * sizeof(std::byte*), cudaMemcpyHostToDevice,
                          stream);
  if (error != cudaSuccess) return error;

  error = cudaHostAlloc(&group->host_words, sizeof(HostWords), cudaHostAllocMapped | cudaHostAllocPortable);
  if (error != cudaSuccess) return error;
  *group->host_words = HostWords{};
  error = cudaHostGetDevicePointer(&group->device_words, group->host_words, 0);
  if (error != cudaSuccess) return error;

  for (size_t r = 0; r <= n; ++r) {
    cudaEvent_t event = nullptr;
    if ((error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming)) != cudaSuccess) return error;
    if (r < n) {
      group->ready.push_back(event);
    } else {
      group->done = event;
    }
  }
  return cudaStreamSynchronize(stream);
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

DcommCudaStatus create_cuda_group(const DcommCudaGroupOptions& options, DcommCudaGroup** group,
                                  DcommCudaGroupInfo* info, const CudaMessage& message) {
  int num_devices = 0;
  DcommCudaStatus status = count_cuda_devices(&num_devices, message);
  if (status != kDcommCudaOk) return status;
  if (options.device < 0 || options.device >= num_devices || options.num_ranks < 1 || options.num_channels < 0) {
    return message.say(kDcommCudaInvalid, "device %d of %d, %d ranks, %d channels", options.device, num_devices,
                       options.num_ranks, options.num_channels);
  }
  const ScopedDevice scope(options.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  DeviceLimits limits;
  int resident = 0;
  auto made = std::make_unique<DcommCudaGroup>();
  if ((status = read_limits(options.device, &limits, message)) != kDcommCudaOk) return status;
  status = load_kernels(options.num_ranks, limits.num_multiprocessors, &resident, message);
  if (status != kDcommCudaOk) return status;
  if ((status = choose_shape(options, limits, resident, made.get(), message)) != kDcommCudaOk) return status;
  const size_t window_bytes = cuda_window_layout(made->num_ranks, made->num_channels, made->slot_bytes).window_bytes();
  const cudaError_t error = allocate(made.get(), window_bytes);
  if (error != cudaSuccess) {
    return message.say(kDcommCudaFailed, "allocating %d windows of %zu bytes on cuda:%d failed: %s", made->num_ranks,
                       window_bytes, options.device, cudaGetErrorString(error));
  }
  *info = {made->num_channels, resident, made->slot_bytes, window_bytes};
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
