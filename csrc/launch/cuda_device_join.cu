// Ranks of different processes: what one needs to know of a GPU, its window and those of the others, and the group over
// all of them. Floor: launch.
#include <cuda_runtime.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>

#include "base/error.h"
#include "exec/cuda_block_exec.cuh"
#include "launch/cuda_device_group.cuh"
#include "launch/cuda_plan.h"
#include "launch/cuda_status.cuh"

namespace dcomm {

namespace {

constexpr size_t kTrialBytes = 4096;

DcommCudaStatus check_device(int device, const CudaMessage& message) {
  int num_devices = 0;
  const DcommCudaStatus status = count_cuda_devices(&num_devices, message);
  if (status != kDcommCudaOk || (device >= 0 && device < num_devices)) return status;
  return message.say(kDcommCudaInvalid, "device %d of %d", device, num_devices);
}

DcommCudaStatus read_uuid(int device, unsigned char (&uuid)[16], const CudaMessage& message) {
  cudaDeviceProp properties{};
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return message.failed("cudaGetDeviceProperties", error);
  std::memcpy(uuid, &properties.uuid, sizeof(uuid));
  return kDcommCudaOk;
}

/// "" or why a window of this kind cannot be made and exported here. A driver may list what its machine refuses.
std::string try_kind(CudaWindowKind kind, int device) {
  try {
    const auto window = make_cuda_window(cuda_driver(), kind, device, kTrialBytes);
    const CudaWindowHandle handle = window->export_handle();
    if (handle.descriptor >= 0) ::close(handle.descriptor);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

/// Of GPUs that this process sees: whether one may reach the other's memory.
DcommCudaStatus check_reach(int device, const unsigned char (&uuid)[16], const CudaMessage& message) {
  int num_devices = 0;
  cudaError_t error = cudaGetDeviceCount(&num_devices);
  if (error != cudaSuccess) return message.failed("cudaGetDeviceCount", error);
  for (int other = 0; other < num_devices; ++other) {
    unsigned char of_other[16];
    const DcommCudaStatus status = read_uuid(other, of_other, message);
    if (status != kDcommCudaOk) return status;
    if (std::memcmp(of_other, uuid, sizeof(uuid)) != 0 || other == device) continue;
    int can_access = 0;
    error = cudaDeviceCanAccessPeer(&can_access, device, other);
    if (error != cudaSuccess) return message.failed("cudaDeviceCanAccessPeer", error);
    if (can_access != 0) continue;
    return message.say(kDcommCudaFailed,
                       "cuda:%d cannot reach the memory of cuda:%d (no NVLink and no peer access over PCIe), and dcomm "
                       "has no other way between GPUs; use GPUs that reach each other (nvidia-smi topo -p2p r), or CPU "
                       "arrays",
                       device, other);
  }
  return kDcommCudaOk;  // one that this process does not see: to map its memory is the test
}

}  // namespace

DcommCudaStatus describe_cuda_device(int device, int world_size, DcommCudaDeviceFacts* facts,
                                     const CudaMessage& message) {
  DcommCudaStatus status = check_device(device, message);
  if (status != kDcommCudaOk) return status;
  const ScopedDevice scope(device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  *facts = DcommCudaDeviceFacts{};
  CudaLimits limits;
  if ((status = find_cuda_limits(device, world_size, &limits, message)) != kDcommCudaOk) return status;
  if ((status = read_uuid(device, facts->uuid, message)) != kDcommCudaOk) return status;
  facts->resident_blocks = limits.resident_blocks;
  facts->l2_bytes = static_cast<uint64_t>(limits.l2_bytes);
  const cudaError_t error = cudaFree(nullptr);  // makes the context, which the driver's functions take for granted
  if (error != cudaSuccess) return message.failed("making a CUDA context", error);
  for (const CudaWindowKind kind : {CudaWindowKind::kIpc, CudaWindowKind::kVmm}) {
    const std::string why_not = try_kind(kind, device);
    if (why_not.empty()) {
      facts->window_kinds |= static_cast<int32_t>(kind);
    } else {
      std::snprintf(facts->why_not, sizeof(facts->why_not), "%s", why_not.c_str());
    }
  }
  return kDcommCudaOk;
}

DcommCudaStatus make_cuda_window(const DcommCudaWindowOptions& options, DcommCudaWindow** window,
                                 const CudaMessage& message) {
  const bool is_kind = options.kind == kDcommCudaWindowVmm || options.kind == kDcommCudaWindowIpc;
  const bool is_shape = options.world_size >= 1 && options.num_channels >= 1 && is_cuda_slot_bytes(options.slot_bytes);
  if (!is_kind || (!is_shape && options.num_bytes == 0)) {
    return message.say(kDcommCudaInvalid, "a window of kind %d for %d ranks, %d channels, slots of %llu bytes",
                       options.kind, options.world_size, options.num_channels,
                       static_cast<unsigned long long>(options.slot_bytes));
  }
  const ScopedDevice scope(options.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  const size_t window_bytes =
      options.num_bytes != 0
          ? options.num_bytes
          : cuda_window_layout(options.world_size, options.num_channels, options.slot_bytes).window_bytes();
  const cudaError_t error = cudaFree(nullptr);  // makes the context, which the driver's functions take for granted
  if (error != cudaSuccess) return message.failed("making a CUDA context", error);
  auto made = std::make_unique<DcommCudaWindow>();
  made->device = options.device;
  made->memory =
      make_cuda_window(cuda_driver(), static_cast<CudaWindowKind>(options.kind), options.device, window_bytes);
  *window = made.release();
  return kDcommCudaOk;
}

DcommCudaStatus export_cuda_window(const DcommCudaWindow& window, DcommCudaWindowHandle* handle,
                                   const CudaMessage& message) {
  const ScopedDevice scope(window.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  *handle = DcommCudaWindowHandle{};
  const DcommCudaStatus status = read_uuid(window.device, handle->uuid, message);
  if (status != kDcommCudaOk) return status;
  const CudaWindowHandle exported = window.memory->export_handle();
  handle->kind = static_cast<int32_t>(exported.kind);
  handle->descriptor = exported.descriptor;
  handle->mapped_bytes = exported.mapped_bytes;
  std::memcpy(handle->ipc, exported.ipc, sizeof(handle->ipc));
  return kDcommCudaOk;
}

DcommCudaStatus import_cuda_window(int device, const DcommCudaWindowHandle& handle, DcommCudaWindow** window,
                                   const CudaMessage& message) {
  const ScopedDevice scope(device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  const DcommCudaStatus status = check_reach(device, handle.uuid, message);
  if (status != kDcommCudaOk) return status;
  CudaWindowHandle theirs;
  theirs.kind = static_cast<CudaWindowKind>(handle.kind);
  theirs.descriptor = handle.descriptor;
  theirs.mapped_bytes = handle.mapped_bytes;
  std::memcpy(theirs.ipc, handle.ipc, sizeof(theirs.ipc));
  auto made = std::make_unique<DcommCudaWindow>();
  made->device = device;
  made->memory = import_cuda_window(cuda_driver(), device, theirs);
  *window = made.release();
  return kDcommCudaOk;
}

void destroy_cuda_window(DcommCudaWindow* window) { delete window; }

void* cuda_window_base(const DcommCudaWindow& window) { return window.memory->base(); }

void keep_cuda_window(DcommCudaWindow& window) { window.memory->keep_forever(); }

DcommCudaStatus join_cuda_group(const DcommCudaMembership& membership, DcommCudaGroup** group,
                                const CudaMessage& message) {
  const int n = membership.world_size;
  const int num_local = membership.num_local_ranks;
  if (num_local < 1 || num_local > kMaxLocalRanks || membership.first_rank < 0 ||
      membership.first_rank + num_local > n || membership.num_channels < 1 ||
      !is_cuda_slot_bytes(membership.slot_bytes)) {
    return message.say(kDcommCudaInvalid, "ranks %d to %d of %d, %d channels, slots of %llu bytes",
                       membership.first_rank, membership.first_rank + num_local - 1, n, membership.num_channels,
                       static_cast<unsigned long long>(membership.slot_bytes));
  }
  const ScopedDevice scope(membership.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  auto made = std::make_unique<DcommCudaGroup>();
  made->device = membership.device;
  made->world_size = n;
  made->first_rank = membership.first_rank;
  made->num_local_ranks = num_local;
  made->num_channels = membership.num_channels;
  made->slot_bytes = membership.slot_bytes;
  made->shared_windows.resize(static_cast<size_t>(n));
  for (int r = 0; r < n; ++r) made->windows.push_back(membership.windows[r]->memory->base());
  const cudaError_t error = prepare_cuda_group(made.get());
  if (error != cudaSuccess) return message.failed("preparing this process' part of the group", error);
  for (int r = 0; r < n; ++r) made->shared_windows[static_cast<size_t>(r)].reset(membership.windows[r]);
  *group = made.release();
  return kDcommCudaOk;
}

void keep_cuda_windows(DcommCudaGroup& group) {
  for (const auto& window : group.shared_windows) window->memory->keep_forever();
}

}  // namespace dcomm
