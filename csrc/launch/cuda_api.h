// What crosses between the core and _cuda.so: plain C, one table of functions for one ABI number. Floor: launch.
//
// The CUDA part is a library of its own, opened on first GPU use (cuda_loader.h), so that a CUDA build imports on a
// machine without a GPU. No C++ type and no exception crosses. Every function returns a DcommCudaStatus and, unless
// that is kDcommCudaOk, writes one sentence with a next step into (message, message_bytes).
// Any change here changes kDcommCudaAbi.
#pragma once

#include <cstddef>
#include <cstdint>

inline constexpr uint32_t kDcommCudaAbi = 10;

extern "C" {

enum DcommCudaStatus : int32_t {
  kDcommCudaOk = 0,
  kDcommCudaNoDevice = 1,  // no driver, one that is too old, or no GPU
  kDcommCudaInvalid = 2,   // arguments
  kDcommCudaTooLarge = 3,  // more blocks than the GPU holds at once
  kDcommCudaFailed = 4,    // a CUDA call failed
  kDcommCudaTimeout = 5,   // the GPU had not finished in time
};

/// The ranks of one process on one GPU: their windows, counters, events and stop words. All ranks of a communicator
/// (group_create), or those of one of its processes (group_join).
struct DcommCudaGroup;

struct DcommCudaGroupOptions {
  int32_t device;
  int32_t num_ranks;
  int32_t num_channels;  // blocks per rank; 0: chosen
  int32_t max_channels;  // where they are chosen; 0: no limit
  uint64_t slot_bytes;   // 0: chosen; else a multiple of 4096
};

struct DcommCudaGroupInfo {
  int32_t num_channels;
  int32_t resident_blocks;  // how many this GPU holds at once, of the kernel that needs most
  uint64_t slot_bytes;
  uint64_t window_bytes;  // per rank
};

/// Where an asynchronous operation is over, for streams and for the host. Used again and again.
struct DcommCudaEvent;

/// One collective; the arrays are indexed by local rank, in the order of ranks. The enumerations are those of
/// base/dtype.h and protocol/control.h. all_to_all: blocks of one length.
struct DcommCudaCall {
  int32_t collective;
  int32_t algo;  // all_reduce only
  int32_t dtype;
  int32_t wire;         // sums only
  int32_t op;           // sums only
  int32_t root;         // broadcast, reduce, gather, scatter; send: who sends
  int32_t peer;         // send: who receives; the other ranks' streams are left alone. A process launches its own side
  uint64_t count;       // elements: of the message, or of a block where there is one per rank
  uint64_t timeout_ns;  // of each wait in the kernel
  const void* const* in;
  void* const* out;      // what of `in` and `out` may be the same: as in algo/; nullptr where a rank has none
  void* const* streams;  // cudaStream_t; each rank's part is ordered on its stream
  // Of the call, without its number. Kernels of different processes compare it, and report kMismatch; 0: they do not.
  uint64_t fingerprint = 0;
  int32_t tag = 0;  // send: the receiver's kernel compares it, count and dtype, and reports kMismatch
  // Recorded behind the operation; nullptr: nobody asks. Into a graph where the streams capture one.
  DcommCudaEvent* end = nullptr;
  // 1: that rank's stream does not wait for the operation, whose end is `end`; nullptr: all wait.
  const uint8_t* detached = nullptr;
  // algo kDirect: the arrays of all ranks of the group, as this process maps them, at addresses that are multiples of
  // an element alike. Each rank writes every result; all_out nullptr: its own only, which then is not its input.
  const void* const* all_in = nullptr;
  void* const* all_out = nullptr;
  // Where that rank's part begins: behind what the event has recorded last; nullptr, the array or an entry: behind what
  // its stream has been given by now.
  const DcommCudaEvent* const* ready = nullptr;
};

/// Why a kernel gave up; the group is of no further use.
struct DcommCudaFailure {
  int32_t code;  // ErrorCode; 0: no failure
  int32_t flow;
  int32_t rank;  // that gave up first
  int32_t peer;  // that it waited for, or whose call differs
  uint32_t seq;  // low 16 bits of the message's number; where calls differ: of the operation's, from 1
                 // (flow kMessage: a message other than the one that `rank` wants has come from `peer`)
};

// ---- Ranks of different processes. Each asks for the facts of its GPU, all agree on a shape and on a kind of window;
// ---- then: window_create, window_export, window_import of all peers, group_join.

/// How a process reaches the window of another. A bit each.
enum DcommCudaWindowKind : int32_t {
  kDcommCudaWindowVmm = 1,  // a descriptor; the memory stays valid until the last process has let it go
  kDcommCudaWindowIpc = 2,  // a legacy handle of 64 bytes; see group_keep_windows
};

/// What all ranks must know of each one's GPU before they can agree.
struct DcommCudaDeviceFacts {
  unsigned char uuid[16];
  int32_t window_kinds;     // those that work here, tried out
  int32_t resident_blocks;  // that it holds at once, of the kernel that needs most
  uint64_t l2_bytes;
  char why_not[192];  // of a kind that does not work; "" where both do
};

/// A rank's window: made here, or another process' as mapped here.
struct DcommCudaWindow;

struct DcommCudaWindowOptions {
  int32_t device;
  int32_t kind;  // DcommCudaWindowKind
  int32_t world_size;
  int32_t num_channels;
  uint64_t slot_bytes;
  uint64_t num_bytes;  // 0: what a rank of a group of this shape needs; else as many, for users' arrays
};

struct DcommCudaWindowHandle {
  int32_t kind;
  int32_t descriptor;  // kind Vmm: whoever has the handle closes it; else -1
  uint64_t mapped_bytes;
  unsigned char uuid[16];  // of the owner's GPU
  unsigned char ipc[64];
};

struct DcommCudaMembership {
  int32_t device;
  int32_t world_size;
  int32_t first_rank;  // of this process
  int32_t num_local_ranks;
  int32_t num_channels;
  int32_t unused;
  uint64_t slot_bytes;
  DcommCudaWindow* const* windows;  // of all ranks
};

struct DcommCudaKernelInfo {
  char name[64];
  int32_t num_registers;
  int32_t local_bytes;  // stack and spills per thread: must be 0
  int32_t shared_bytes;
  int32_t max_threads;
};

/// A list of arrays on one GPU, as its kernels want it, in device memory.
struct DcommCudaList;

struct DcommCudaListOptions {
  int32_t device;
  int32_t dtype;  // of the arrays; base/dtype.h
  uint64_t num_arrays;
  void* const* arrays;      // device memory
  const uint64_t* counts;   // elements
  const uint64_t* offsets;  // elements from the start of the whole
};

/// The arrays into the whole (packs = 1), or the whole into the arrays (0).
struct DcommCudaListCopy {
  int32_t packs;
  int32_t whole_dtype;  // the arrays', or one of float32 and float16 / bfloat16 where theirs is the other
  void* whole;          // device memory
  double scale;         // each element times this in float32; 1 where the dtypes are equal and no half or float32
  void* stream;         // cudaStream_t
};

struct DcommCudaTable {
  uint32_t abi;
  uint32_t num_kernels;

  int32_t (*device_count)(int32_t* count, char* message, size_t message_bytes);

  /// Allocates everything and loads every kernel: no later call allocates or waits for the GPU.
  int32_t (*group_create)(const DcommCudaGroupOptions* options, DcommCudaGroup** group, DcommCudaGroupInfo* info,
                          char* message, size_t message_bytes);
  /// Waits until what was launched is done, 10 s at most, then stops it; frees everything, or leaves the memory
  /// allocated if a kernel still runs.
  void (*group_destroy)(DcommCudaGroup* group);
  /// Asynchronous to the GPU. Any thread, one at a time per group.
  int32_t (*run)(DcommCudaGroup* group, const DcommCudaCall* call, char* message, size_t message_bytes);
  /// What the group's kernels have reported so far; never waits.
  void (*poll_error)(const DcommCudaGroup* group, DcommCudaFailure* failure);
  /// Waits on the host until the group's last operation is done.
  int32_t (*synchronize)(DcommCudaGroup* group, uint64_t timeout_ns, char* message, size_t message_bytes);
  /// Tells the group's kernels to end; any thread, never waits.
  void (*stop)(DcommCudaGroup* group);

  /// index < num_kernels.
  int32_t (*kernel_info)(int32_t device, uint32_t index, DcommCudaKernelInfo* info, char* message,
                         size_t message_bytes);
  /// Bytes read + written per second by a device-to-device copy of nbytes: the floor under every collective.
  int32_t (*copy_bandwidth)(int32_t device, uint64_t nbytes, double* bytes_per_second, char* message,
                            size_t message_bytes);

  /// Allocates, and waits until the list is in device memory.
  int32_t (*list_create)(const DcommCudaListOptions* options, DcommCudaList** list, char* message,
                         size_t message_bytes);
  /// No copy of it may be running, nor any captured graph be replayed later.
  void (*list_destroy)(DcommCudaList* list);
  /// One launch, asynchronous to the host; neither allocates nor waits, and can be captured into a graph.
  int32_t (*list_copy)(const DcommCudaList* list, const DcommCudaListCopy* copy, char* message, size_t message_bytes);

  /// The GPU whose memory holds `address`.
  int32_t (*pointer_device)(const void* address, int32_t* device, char* message, size_t message_bytes);
  /// What is enqueued on `after` from now on waits for what `before` has been given so far; asynchronous to the host.
  /// Allocates at a device's first call only.
  int32_t (*order_streams)(int32_t device, void* before, void* after, char* message, size_t message_bytes);

  /// Loads every kernel; makes a window of each kind and gives it up again.
  int32_t (*device_facts)(int32_t device, int32_t world_size, DcommCudaDeviceFacts* facts, char* message,
                          size_t message_bytes) = nullptr;
  /// Zeroed.
  int32_t (*window_create)(const DcommCudaWindowOptions* options, DcommCudaWindow** window, char* message,
                           size_t message_bytes) = nullptr;
  int32_t (*window_export)(const DcommCudaWindow* window, DcommCudaWindowHandle* handle, char* message,
                           size_t message_bytes) = nullptr;
  /// The handle's descriptor stays the caller's.
  int32_t (*window_import)(int32_t device, const DcommCudaWindowHandle* handle, DcommCudaWindow** window, char* message,
                           size_t message_bytes) = nullptr;
  /// The caller knows that nobody uses it any more.
  void (*window_destroy)(DcommCudaWindow* window) = nullptr;
  /// As group_create, over windows that all ranks have zeroed and mapped; they are the group's unless it fails.
  int32_t (*group_join)(const DcommCudaMembership* membership, DcommCudaGroup** group, char* message,
                        size_t message_bytes) = nullptr;
  /// Before group_destroy, where another process may still have this one's windows open: windows of kind Ipc then stay
  /// allocated until the process ends (to free them would be undefined).
  void (*group_keep_windows)(DcommCudaGroup* group) = nullptr;

  /// The floor under an operation of a few bytes: an empty cooperative launch, replayed by a CUDA graph, and the way of
  /// a flag from one block to another and back. Waits for the GPU, some 10 ms; allocates.
  int32_t (*launch_floor)(int32_t device, double* empty_launch_us, double* round_trip_us, char* message,
                          size_t message_bytes) = nullptr;

  /// Allocates.
  int32_t (*event_create)(int32_t device, DcommCudaEvent** event, char* message, size_t message_bytes) = nullptr;
  /// Streams that wait for it go on waiting for what it has recorded; the same holds when it is recorded again.
  void (*event_destroy)(DcommCudaEvent* event) = nullptr;
  /// Records what `stream` has been given by now. kDcommCudaInvalid for a stream that captures a graph, or the
  /// per-thread default one.
  int32_t (*event_record)(DcommCudaEvent* event, void* stream, char* message, size_t message_bytes) = nullptr;
  /// What is enqueued on `stream` from now on waits for what the event has recorded last; asynchronous to the host.
  int32_t (*event_wait)(const DcommCudaEvent* event, void* stream, char* message, size_t message_bytes) = nullptr;
  /// Never waits. *state: DcommCudaEventState.
  int32_t (*event_query)(const DcommCudaEvent* event, int32_t* state, char* message, size_t message_bytes) = nullptr;

  // ---- Windows that users' arrays lie in.
  /// A multiple of 4096.
  void* (*window_base)(const DcommCudaWindow* window) = nullptr;
  /// Waits until all that was given to the device so far is done, on whatever stream, as cudaFree does.
  int32_t (*device_wait)(int32_t device, char* message, size_t message_bytes) = nullptr;
  /// Of kind Ipc, which others may still have open: it stays allocated until the process ends.
  void (*window_keep)(DcommCudaWindow* window) = nullptr;
};

/// What an event has recorded last.
enum DcommCudaEventState : int32_t {
  kDcommCudaEventAhead = 0,     // is not over
  kDcommCudaEventOver = 1,      // is over
  kDcommCudaEventCaptured = 2,  // is part of a graph: each launch of which has an end of its own
};

/// The library's only symbol. nullptr for an ABI number that it does not know.
using DcommCudaTableFunction = const DcommCudaTable*(uint32_t abi);
#define DCOMM_CUDA_TABLE_SYMBOL "dcomm_cuda_table"

}  // extern "C"
