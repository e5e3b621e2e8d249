// What each rank of a process has called on a GPU and not got yet, and which of it belongs together. Floor: launch.
//
// Collectives meet in order: one begins when it is the first thing that every rank waits for. A message meets the
// first one of the other side that has its tag; it passes other messages, but no collective. Plain data: the caller
// holds a lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "exec/host_exec.h"
#include "launch/cuda_work.h"
#include "launch/host_launch.h"

namespace dcomm {

/// One rank's part of a call. `stream`: cudaStream_t; nullptr is the legacy default stream.
struct CudaRankCall {
  int device = 0;
  CollectiveCall call;
  void* stream = nullptr;
  int64_t timeout_ns = 0;                // until all ranks have come, and of each wait on the GPU (there 1 s more)
  InterruptCheck interrupted = nullptr;  // asked every 50 ms while the host waits
  void* argument = nullptr;
  std::shared_ptr<CudaWork> work = nullptr;  // asynchronous: `stream` does not wait for the operation
};

/// "all_reduce(1000 x float32, sum, ring) on cuda:0", "send(8 x int32) to rank 1 on cuda:0".
std::string describe(const CudaRankCall& call);

struct CudaOutcome {
  ErrorCode code = ErrorCode::kOk;
  std::string message = {};
  NamedRanks ranks = {};

  Error error() const { return {code, message, ranks}; }
};

/// How a rank called: its thread waits inside the call; it plays all ranks in a dcomm.group; or the call has returned
/// with a Work.
enum class CudaCallManner : uint8_t { kWaits, kCollected, kPosted };

struct CudaPendingCall {
  int rank = 0;
  CudaRankCall call;
  CudaCallManner manner = CudaCallManner::kWaits;
  bool done = false;
  CudaOutcome outcome;                    // once done
  std::shared_ptr<DcommCudaEvent> ready;  // what the stream held at the call; nullptr: what it holds at the launch
};

class CudaCallQueues {
 public:
  using Pending = std::shared_ptr<CudaPendingCall>;

  explicit CudaCallQueues(int world_size) : queues_(static_cast<size_t>(world_size)) {}

  int world_size() const { return static_cast<int>(queues_.size()); }
  bool is_empty() const;
  /// A thread waits inside a call of this rank.
  bool is_blocked(int rank) const;
  void push(Pending pending);
  void remove(const Pending& pending);
  std::vector<Pending> take_all();
  /// Those of a dcomm.group.
  std::vector<Pending> take_collected();
  /// All others.
  std::vector<Pending> list_own() const;
  /// The asynchronous call of this rank that gave `work`; nullptr: it is no longer queued.
  Pending find(int rank, const CudaWork& work) const;

  /// The parts of an operation for which everybody has come, no longer queued: by rank, or of sender and receiver.
  /// Empty: there is none.
  std::vector<Pending> take_complete();

  /// A call that can never be met, since the rank that it waits for waits for this one in another way; nullptr: none.
  Pending find_dead_end(const CudaPendingCall& waiting) const;

  /// `rank` has called what `waiting` waits for.
  bool has_come(int rank, const CudaPendingCall& waiting) const;
  /// Ranks that have not: "rank 2" or "ranks 0, 3".
  std::vector<int> missing(const CudaPendingCall& waiting) const;
  /// "rank 0 called ..., rank 1 called nothing more": the first call of each.
  std::string describe_all() const;

 private:
  using Queue = std::deque<Pending>;

  template <class Wanted>
  std::vector<Pending> list(const Wanted& wanted) const;
  std::vector<Pending> take_collective();
  std::vector<Pending> take_message();
  static Queue::iterator find_message(Queue& queue, Collective collective, int peer, int tag);

  std::vector<Queue> queues_;
};

/// "rank 2" or "ranks 0, 3".
std::string list_ranks(const std::vector<int>& ranks);

}  // namespace dcomm
