// A _cuda.so for machines without a GPU: the C table over host memory, its kernels on emulated blocks.
//
// What stands around the kernels on a GPU is here too: all operations of the process go through one launch stream,
// which waits for every rank's stream, and they wait for it; nothing but synchronize waits on the host. Loaded by
// tests only (_core._use_cuda_library). What it cannot show is left to tests/gpu.
#include "cuda_emulated_library.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cuda_emulated_group.h"
#include "cuda_emulated_streams.h"
#include "fake_cuda_driver.h"
#include "launch/cuda_call_rules.h"
#include "memory/cuda_window.h"

namespace dcomm::checks::cuda {
namespace {

constexpr int kResidentBlocks = 64;
constexpr int kDefaultChannels = 2;
constexpr uint64_t kDefaultSlotBytes = 4096;

/// All that the process launches goes through it, in program order.
struct LaunchStream {
  std::mutex mutex;
  Stream stream;
  static LaunchStream& instance() {
    static LaunchStream& launch = *new LaunchStream;
    return launch;
  }
};

std::atomic<int> absent_rank{-1};  // of the next launch
std::atomic<int> num_launched{0};
std::atomic<int> num_direct{0};
std::atomic<int> num_device_waits{0};
std::mutex driver_mutex;

struct Place {
  const std::byte* begin;
  size_t nbytes;
  int device;
};
std::mutex places_mutex;
std::vector<Place>& places() {
  static std::vector<Place>& all = *new std::vector<Place>;
  return all;
}

/// These bytes are memory of that GPU; -1: no longer.
void set_place(const std::byte* begin, size_t nbytes, int device) {
  const std::lock_guard lock(places_mutex);
  std::erase_if(places(), [&](const Place& known) { return known.begin == begin; });
  if (device >= 0) places().push_back({begin, nbytes, device});
}

}  // namespace
}  // namespace dcomm::checks::cuda

struct DcommCudaWindow {
  std::unique_ptr<dcomm::CudaWindow> memory;
  bool holds_arrays = false;  // of users
};

struct DcommCudaEvent {
  mutable std::mutex mutex;
  std::shared_ptr<dcomm::checks::cuda::Ticket> recorded;  // nullptr: nothing yet
  std::shared_ptr<dcomm::checks::cuda::Ticket> last() const {
    const std::lock_guard lock(mutex);
    return recorded;
  }
};

struct DcommCudaGroup {
  DcommCudaGroup(int device_, int num_ranks, int num_channels, size_t slot_bytes)
      : device(device_), blocks(num_ranks, num_channels, slot_bytes) {}
  DcommCudaGroup(const DcommCudaMembership& own, std::vector<std::byte*> windows)
      : device(own.device),
        blocks(own.world_size, own.num_channels, own.slot_bytes, own.first_rank, own.num_local_ranks,
               std::move(windows)) {}
  ~DcommCudaGroup() {
    for (auto& window : shared_windows) {
      if (window != nullptr && window->memory->is_imported()) window.reset();
    }
  }
  const int device;
  std::vector<std::unique_ptr<DcommCudaWindow>> shared_windows;
  dcomm::checks::cuda::EmulatedGroup blocks;
  std::mutex mutex;  // of `done`
  std::shared_ptr<dcomm::checks::cuda::Ticket> done;

  bool wait(std::chrono::nanoseconds timeout) {
    std::shared_ptr<dcomm::checks::cuda::Ticket> last;
    {
      const std::lock_guard lock(mutex);
      last = done;
    }
    return last == nullptr || last->wait_for(timeout);
  }
};

namespace dcomm::checks::cuda {
namespace {

int32_t device_count(int32_t* count, char*, size_t) {
  *count = kNumDevices;
  return kDcommCudaOk;
}

int32_t group_create(const DcommCudaGroupOptions* options, DcommCudaGroup** group, DcommCudaGroupInfo* info, char* text,
                     size_t num_bytes) {
  const Message message(text, num_bytes);
  const int channels = options->num_channels == 0 ? kDefaultChannels : options->num_channels;
  const uint64_t slot_bytes = options->slot_bytes == 0 ? kDefaultSlotBytes : options->slot_bytes;
  if (options->device < 0 || options->device >= kNumDevices || options->num_ranks < 1) {
    return message.say(kDcommCudaInvalid, "device %d of %d, %d ranks", options->device, kNumDevices,
                       options->num_ranks);
  }
  if (options->num_ranks * channels > kResidentBlocks) {
    return message.say(kDcommCudaTooLarge,
                       "%d ranks with %d channels each need %d thread blocks at once, but cuda:%d holds %d; start "
                       "fewer ranks",
                       options->num_ranks, channels, options->num_ranks * channels, options->device, kResidentBlocks);
  }
  *group = new DcommCudaGroup(options->device, options->num_ranks, channels, slot_bytes);
  *info = {channels, kResidentBlocks, slot_bytes,
           cuda_window_layout(options->num_ranks, channels, slot_bytes).window_bytes()};
  return kDcommCudaOk;
}

void stop(DcommCudaGroup* group) { __atomic_store_n(&group->blocks.stop, 1u, __ATOMIC_RELEASE); }

void group_destroy(DcommCudaGroup* group) {
  if (!group->wait(std::chrono::seconds(10))) {
    stop(group);
    if (!group->wait(std::chrono::seconds(1))) return;  // a kernel still uses it
  }
  delete group;
}

CollectiveCall collective_call(const DcommCudaCall& call) {
  CollectiveCall made;
  made.collective = static_cast<Collective>(call.collective);
  made.algo = static_cast<Algo>(call.algo);
  made.dtype = static_cast<DType>(call.dtype);
  made.wire = static_cast<DType>(call.wire);
  made.op = static_cast<ReduceOp>(call.op);
  made.root = call.root;
  made.count = call.count;
  made.tag = call.tag;
  return made;
}

void enqueue(DcommCudaGroup& group, const DcommCudaCall& call, const Launch& launch) {
  const int first = group.blocks.first_rank;
  const int n = group.blocks.num_local_ranks;
  int leader = 0;
  while (!takes_part(call, first + leader)) ++leader;
  Stream& own = *Streams::instance().find(call.streams[leader]);
  if (own.graph() != nullptr) {  // the launch stream stays out of it
    own.enqueue([launch] { run_grid(launch); });
    if (call.end != nullptr) {
      const std::lock_guard end_lock(call.end->mutex);
      call.end->recorded = own.record();
    }
    return;
  }
  LaunchStream& queue = LaunchStream::instance();
  const std::lock_guard lock(queue.mutex);
  for (int r = 0; r < n; ++r) {
    const DcommCudaEvent* const noted = ready_event(call, first + r, first);
    if (noted != nullptr) queue.stream.wait_for(noted->last());
    if (!is_first_of_its_stream(call, first + r, first)) continue;
    queue.stream.wait_for(Streams::instance().find(call.streams[r])->record());
  }
  const int absent = absent_rank.exchange(-1);
  queue.stream.enqueue([launch, absent] { run_grid(launch, absent); });
  const std::shared_ptr<Ticket> done = queue.stream.record();
  if (call.end != nullptr) {
    const std::lock_guard end_lock(call.end->mutex);
    call.end->recorded = done;
  }
  for (int r = 0; r < n; ++r) {
    if (waits_for_end(call, first + r, first)) Streams::instance().find(call.streams[r])->wait_for(done);
  }
  const std::lock_guard done_lock(group.mutex);
  group.done = done;
}

std::vector<CudaArrays> arrays_of_all(const DcommCudaGroup& group, const DcommCudaCall& call) {
  std::vector<CudaArrays> all;
  for (int r = 0; r < group.blocks.world_size; ++r) {
    all.push_back({call.all_in[r], call.all_out == nullptr ? nullptr : call.all_out[r]});
  }
  for (int r = 0; r < group.blocks.num_local_ranks; ++r) {
    all[static_cast<size_t>(group.blocks.first_rank + r)].out = call.out[r];
  }
  return all;
}

int32_t run(DcommCudaGroup* group, const DcommCudaCall* call, char* text, size_t num_bytes) {
  const Message message(text, num_bytes);
  const int first = group->blocks.first_rank;
  const int n = group->blocks.num_local_ranks;
  if (!is_known_call(*call, group->blocks.world_size))
    return message.say(kDcommCudaInvalid, "the call is not one of the kernels'");
  std::vector<CudaArrays> arrays;
  Stream* any = nullptr;
  for (int r = 0; r < n; ++r) {
    if (call->all_in == nullptr) arrays.push_back({call->in[r], call->out[r]});
    if (!has_good_arrays(*call, first + r, first)) {
      return message.say(kDcommCudaInvalid, "rank %d's arrays are at bad addresses", first + r);
    }
    if (!takes_part(*call, first + r) || ready_event(*call, first + r, first) != nullptr) continue;
    if (reinterpret_cast<uintptr_t>(call->streams[r]) == 2) {
      return message.say(kDcommCudaInvalid, "rank %d passes the per-thread default stream", first + r);
    }
    Stream* const stream = Streams::instance().find(call->streams[r]);
    if (stream == nullptr) return message.no_stream(call->streams[r]);
    if (any != nullptr && any->graph() != stream->graph()) {
      return message.say(kDcommCudaInvalid,
                         "one rank's stream is capturing a CUDA graph, of which rank %d's stream is no part; let one "
                         "thread capture for all ranks, inside dcomm.group",
                         first + r);
    }
    any = stream;
  }
  for (int r = 0; r < n && any != nullptr && any->graph() != nullptr; ++r) {
    if (ready_event(*call, first + r, first) == nullptr) continue;
    return message.say(kDcommCudaInvalid,
                       "one rank's stream is capturing a CUDA graph, of which rank %d's asynchronous call is no part; "
                       "let one thread capture for all ranks, inside dcomm.group",
                       first + r);
  }
  if (call->all_in != nullptr) arrays = arrays_of_all(*group, *call);
  if ((call->all_in != nullptr) != (static_cast<Algo>(call->algo) == Algo::kDirect)) {
    return message.say(kDcommCudaInvalid, "algo 'direct' is for arrays that all ranks reach");
  }
  Launch launch = find_launch(group->blocks, collective_call(*call), arrays, call->all_out == nullptr);
  if (launch.body == nullptr) {
    return message.say(kDcommCudaInvalid, "no CUDA kernel for %s of %s arrays",
                       collective_name(static_cast<Collective>(call->collective)),
                       dtype_name(static_cast<DType>(call->dtype)));
  }
  launch.job.peer = call->peer;
  launch.job.timeout_ns = call->timeout_ns;
  launch.job.fingerprint = call->fingerprint;
  ++num_launched;
  num_direct += call->all_in != nullptr;
  enqueue(*group, *call, launch);
  return kDcommCudaOk;
}

void poll_error(const DcommCudaGroup* group, DcommCudaFailure* failure) {
  const uint64_t word = __atomic_load_n(&group->blocks.error, __ATOMIC_ACQUIRE);
  *failure = {static_cast<int32_t>(word >> 56), static_cast<int32_t>((word >> 48) & 0xffu),
              static_cast<int32_t>((word >> 32) & 0xffffu), static_cast<int32_t>((word >> 16) & 0xffffu),
              static_cast<uint32_t>(word & 0xffffu)};
}

int32_t synchronize(DcommCudaGroup* group, uint64_t timeout_ns, char* text, size_t num_bytes) {
  const auto timeout = std::chrono::nanoseconds(static_cast<int64_t>(std::min<uint64_t>(timeout_ns, INT64_MAX / 4)));
  if (group->wait(timeout)) return kDcommCudaOk;
  return Message(text, num_bytes)
      .say(kDcommCudaTimeout, "cuda:%d had not finished after %.3f s", group->device,
           static_cast<double>(timeout_ns) * 1e-9);
}

int32_t kernel_info(int32_t, uint32_t index, DcommCudaKernelInfo*, char* text, size_t num_bytes) {
  return Message(text, num_bytes).say(kDcommCudaInvalid, "kernel %u of 0: emulated ones are not compiled", index);
}

int32_t copy_bandwidth(int32_t, uint64_t nbytes, double* bytes_per_second, char* text, size_t num_bytes) {
  if (nbytes == 0) return Message(text, num_bytes).say(kDcommCudaInvalid, "copy_bandwidth: nbytes must be positive");
  const std::vector<std::byte> from(nbytes);
  std::vector<std::byte> to(nbytes);
  const auto start = std::chrono::steady_clock::now();
  std::memcpy(to.data(), from.data(), nbytes);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  *bytes_per_second = 2.0 * static_cast<double>(nbytes) / std::max(elapsed.count(), 1e-9);
  return kDcommCudaOk;
}

int32_t pointer_device(const void* address, int32_t* device, char* text, size_t num_bytes) {
  const std::lock_guard lock(places_mutex);
  const auto* const byte = static_cast<const std::byte*>(address);
  for (const Place& place : places()) {
    if (byte < place.begin || byte >= place.begin + place.nbytes) continue;
    *device = place.device;
    return kDcommCudaOk;
  }
  return Message(text, num_bytes).say(kDcommCudaInvalid, "address %p is not in the memory of a GPU", address);
}

int32_t order_streams(int32_t, void* before, void* after, char* text, size_t num_bytes) {
  Stream* const first = Streams::instance().find(before);
  Stream* const second = Streams::instance().find(after);
  if (first == nullptr || second == nullptr) {
    return Message(text, num_bytes).no_stream(first == nullptr ? before : after);
  }
  second->wait_for(first->record());
  return kDcommCudaOk;
}

std::atomic<int> num_events{0};  // that exist

int32_t event_create(int32_t, DcommCudaEvent** event, char*, size_t) {
  ++num_events;
  *event = new DcommCudaEvent;
  return kDcommCudaOk;
}

void event_destroy(DcommCudaEvent* event) {
  --num_events;
  delete event;
}

int32_t event_record(DcommCudaEvent* event, void* handle, char* text, size_t num_bytes) {
  Stream* const stream = Streams::instance().find(handle);
  if (stream == nullptr) return Message(text, num_bytes).no_stream(handle);
  if (reinterpret_cast<uintptr_t>(handle) == 2 || stream->graph() != nullptr) {
    return Message(text, num_bytes)
        .say(kDcommCudaInvalid,
             "the per-thread default stream, or a CUDA graph is being captured, of which one rank's asynchronous call "
             "cannot be a part; let one thread capture for all ranks, inside dcomm.group");
  }
  const std::lock_guard lock(event->mutex);
  event->recorded = stream->record();
  return kDcommCudaOk;
}

int32_t event_wait(const DcommCudaEvent* event, void* handle, char* text, size_t num_bytes) {
  Stream* const stream = Streams::instance().find(handle);
  if (stream == nullptr) return Message(text, num_bytes).no_stream(handle);
  const auto recorded = event->last();
  if (recorded == nullptr) return kDcommCudaOk;
  if (stream->graph() != nullptr && recorded->graph == nullptr) {
    return Message(text, num_bytes)
        .say(kDcommCudaInvalid,
             "the stream is capturing a CUDA graph, but the operation was launched outside of it; wait for it before "
             "the capture begins");
  }
  stream->wait_for(recorded);
  return kDcommCudaOk;
}

int32_t event_query(const DcommCudaEvent* event, int32_t* state, char*, size_t) {
  const auto recorded = event->last();
  if (recorded != nullptr && recorded->graph != nullptr) {
    *state = kDcommCudaEventCaptured;
    return kDcommCudaOk;
  }
  const bool over = recorded == nullptr || recorded->wait_for(std::chrono::nanoseconds(0));
  *state = over ? kDcommCudaEventOver : kDcommCudaEventAhead;
  return kDcommCudaOk;
}

// ---- Ranks of different processes. Windows are made by the very code of csrc/memory, over a driver of host memory.

std::atomic<int> window_kinds{kDcommCudaWindowVmm | kDcommCudaWindowIpc};  // that "work" in this process
std::atomic<int> shared_gpu{-1};  // the GPU that this process has, to the others; -1: one of its own

FakeCudaDriver& driver() {
  static FakeCudaDriver& instance = *new FakeCudaDriver;
  return instance;
}

/// As in launch/cuda_table.cu. One call of the driver at a time.
template <class F>
int32_t guarded(const Message& message, const F& f) {
  const std::lock_guard lock(driver_mutex);
  try {
    f();
    return kDcommCudaOk;
  } catch (const std::exception& error) {
    return message.say(kDcommCudaFailed, "%s", error.what());
  }
}

int32_t device_facts(int32_t device, int32_t, DcommCudaDeviceFacts* facts, char* text, size_t num_bytes) {
  if (device < 0 || device >= kNumDevices) {
    return Message(text, num_bytes).say(kDcommCudaInvalid, "device %d of %d", device, kNumDevices);
  }
  *facts = DcommCudaDeviceFacts{};
  const int gpu = shared_gpu >= 0 ? shared_gpu.load() : static_cast<int>(getpid());
  std::memcpy(facts->uuid, &gpu, sizeof(gpu));
  facts->uuid[sizeof(gpu)] = static_cast<unsigned char>(device);
  facts->window_kinds = window_kinds;
  facts->resident_blocks = kResidentBlocks;
  facts->l2_bytes = kDefaultSlotBytes * 64;
  if (window_kinds != (kDcommCudaWindowVmm | kDcommCudaWindowIpc)) {
    std::snprintf(facts->why_not, sizeof(facts->why_not), "the emulated driver was told so");
  }
  return kDcommCudaOk;
}

int32_t window_create(const DcommCudaWindowOptions* options, DcommCudaWindow** window, char* text, size_t num_bytes) {
  return guarded(Message(text, num_bytes), [&] {
    driver();
    const size_t window_bytes =
        options->num_bytes != 0
            ? options->num_bytes
            : cuda_window_layout(options->world_size, options->num_channels, options->slot_bytes).window_bytes();
    auto made = std::make_unique<DcommCudaWindow>();
    made->memory = make_cuda_window(FakeCudaDriver::table(), static_cast<CudaWindowKind>(options->kind),
                                    options->device, window_bytes);
    made->holds_arrays = options->num_bytes != 0;
    if (made->holds_arrays) set_place(made->memory->base(), window_bytes, options->device);
    *window = made.release();
  });
}

int32_t window_export(const DcommCudaWindow* window, DcommCudaWindowHandle* handle, char* text, size_t num_bytes) {
  return guarded(Message(text, num_bytes), [&] {
    const CudaWindowHandle exported = window->memory->export_handle();
    *handle = DcommCudaWindowHandle{};
    handle->kind = static_cast<int32_t>(exported.kind);
    handle->descriptor = exported.descriptor;
    handle->mapped_bytes = exported.mapped_bytes;
    std::memcpy(handle->ipc, exported.ipc, sizeof(handle->ipc));
  });
}

int32_t window_import(int32_t device, const DcommCudaWindowHandle* handle, DcommCudaWindow** window, char* text,
                      size_t num_bytes) {
  return guarded(Message(text, num_bytes), [&] {
    CudaWindowHandle theirs;
    theirs.kind = static_cast<CudaWindowKind>(handle->kind);
    theirs.descriptor = handle->descriptor;
    theirs.mapped_bytes = handle->mapped_bytes;
    std::memcpy(theirs.ipc, handle->ipc, sizeof(theirs.ipc));
    auto made = std::make_unique<DcommCudaWindow>();
    made->memory = import_cuda_window(FakeCudaDriver::table(), device, theirs);
    *window = made.release();
  });
}

void window_destroy(DcommCudaWindow* window) {
  const std::lock_guard lock(driver_mutex);
  if (window->holds_arrays) set_place(window->memory->base(), 0, -1);
  delete window;
}

void* window_base(const DcommCudaWindow* window) { return window->memory->base(); }

void window_keep(DcommCudaWindow* window) { window->memory->keep_forever(); }

int32_t device_wait(int32_t, char* text, size_t num_bytes) {
  ++num_device_waits;
  bool done = Streams::instance().wait_all(std::chrono::seconds(60));
  done = LaunchStream::instance().stream.record()->wait_for(std::chrono::seconds(60)) && done;
  done = Streams::instance().wait_all(std::chrono::seconds(60)) && done;  // they wait for the launches
  return done ? kDcommCudaOk : Message(text, num_bytes).say(kDcommCudaTimeout, "a stream is still busy");
}

int32_t group_join(const DcommCudaMembership* membership, DcommCudaGroup** group, char* text, size_t num_bytes) {
  return guarded(Message(text, num_bytes), [&] {
    std::vector<std::byte*> windows;
    for (int r = 0; r < membership->world_size; ++r) windows.push_back(membership->windows[r]->memory->base());
    auto made = std::make_unique<DcommCudaGroup>(*membership, std::move(windows));
    for (int r = 0; r < membership->world_size; ++r) made->shared_windows.emplace_back(membership->windows[r]);
    *group = made.release();
  });
}

void group_keep_windows(DcommCudaGroup* group) {
  for (const auto& window : group->shared_windows) window->memory->keep_forever();
}

}  // namespace
}  // namespace dcomm::checks::cuda

#define DCOMM_EXPORTED extern "C" __attribute__((visibility("default")))

DCOMM_EXPORTED const DcommCudaTable* dcomm_cuda_table(uint32_t abi) {
  using namespace dcomm::checks::cuda;
  if (abi != kDcommCudaAbi) return nullptr;
  static const DcommCudaTable table = {
      kDcommCudaAbi,
      0,
      &device_count,
      &group_create,
      &group_destroy,
      &run,
      &poll_error,
      &synchronize,
      &stop,
      &kernel_info,
      &copy_bandwidth,
      &create_list,
      &destroy_list,
      &copy_list_of,
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

// ---- What a test needs of a GPU beside dcomm (tests/support/emulated_cuda.py) ----

DCOMM_EXPORTED void* emulated_stream() { return dcomm::checks::cuda::Streams::instance().create(); }

/// The stream goes on when *word is not 0; after 60 s in any case.
DCOMM_EXPORTED void emulated_hold(void* stream, const int32_t* word) {
  dcomm::checks::cuda::Streams::instance().find(stream)->enqueue([word] {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == 0 && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  });
}

DCOMM_EXPORTED void emulated_copy(void* stream, void* to, const void* from, uint64_t nbytes) {
  dcomm::checks::cuda::Streams::instance().find(stream)->enqueue([=] { std::memcpy(to, from, nbytes); });
}

/// 1: all that the stream was given is done.
DCOMM_EXPORTED int32_t emulated_wait(void* stream, double seconds) {
  const auto timeout = std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
  return dcomm::checks::cuda::Streams::instance().find(stream)->record()->wait_for(timeout) ? 1 : 0;
}

/// What the stream, and those that come to wait for it, are given from now on goes into a graph, until the end.
DCOMM_EXPORTED void emulated_capture_begin(void* stream) {
  using namespace dcomm::checks::cuda;
  Streams::instance().find(stream)->capture(new Graph);
}

/// The graph, which lives as long as the process.
DCOMM_EXPORTED void* emulated_capture_end(void* stream) {
  using namespace dcomm::checks::cuda;
  Graph* const graph = Streams::instance().find(stream)->graph();
  for (Stream* const each : graph->streams) each->capture(nullptr);
  return graph;
}

DCOMM_EXPORTED void emulated_replay(void* graph, void* stream) {
  using namespace dcomm::checks::cuda;
  for (const auto& task : static_cast<Graph*>(graph)->tasks) Streams::instance().find(stream)->enqueue(task);
}

/// These bytes are memory of that GPU; -1: no longer.
DCOMM_EXPORTED void emulated_place(const void* address, uint64_t nbytes, int32_t device) {
  dcomm::checks::cuda::set_place(static_cast<const std::byte*>(address), nbytes, device);
}

/// This rank's blocks stay away from the next launch.
DCOMM_EXPORTED void emulated_absent(int32_t rank) { dcomm::checks::cuda::absent_rank = rank; }

/// Events of asynchronous operations that exist.
DCOMM_EXPORTED int32_t emulated_num_events() { return dcomm::checks::cuda::num_events; }

DCOMM_EXPORTED int32_t emulated_num_launched() { return dcomm::checks::cuda::num_launched; }

/// This process' windows can be of these kinds (DcommCudaWindowKind); the other processes take `gpu` for the GPU that
/// it uses, -1: one of its own; call `fails_at` from here on of the driver fails, -1: none.
DCOMM_EXPORTED void emulated_process(int32_t window_kinds, int32_t gpu, int32_t fails_at) {
  using namespace dcomm::checks;
  cuda::window_kinds = window_kinds;
  cuda::shared_gpu = gpu;
  cuda::driver().fails_at = fails_at < 0 ? -1 : cuda::driver().num_calls() + fails_at;
}

/// Memory, addresses and mappings of the emulated driver that this process still has.
DCOMM_EXPORTED int32_t emulated_num_alive() { return static_cast<int32_t>(dcomm::checks::cuda::driver().num_alive()); }

/// Launches that used all ranks' arrays where they lie.
DCOMM_EXPORTED int32_t emulated_num_direct() { return dcomm::checks::cuda::num_direct; }

/// How often the process has waited for all of its GPU.
DCOMM_EXPORTED int32_t emulated_num_device_waits() { return dcomm::checks::cuda::num_device_waits; }
