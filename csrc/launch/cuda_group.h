// Ranks that are threads of one process and share one GPU: they meet on the host, one of them launches for all.
// Floor: launch (plain C++; no CUDA header).
//
// A call blocks the host until every rank that takes part has called, or its deadline; then it is asynchronous to the
// GPU: each rank's part runs in order on that rank's stream. What all ranks must agree on is compared while they meet,
// so a mismatch raises on all of them before anything is launched, and the group stays usable.
//
// An asynchronous call is posted: it notes by an event what its stream holds, and returns. The call that completes the
// operation, posted or not, launches it for all.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/error.h"
#include "launch/cuda_api.h"
#include "launch/cuda_call_queues.h"

namespace dcomm {

/// 0: chosen when the first operation comes.
struct CudaGroupOptions {
  int num_channels = 0;     // thread blocks per rank
  int max_channels = 0;     // where num_channels is 0; 0: no limit
  uint64_t slot_bytes = 0;  // a multiple of 4096

  /// Reads DCOMM_CUDA_CHANNELS, DCOMM_MAX_CTAS and DCOMM_CUDA_SLOT_BYTES. Throws kInvalidArgument naming the variable
  /// and its value.
  static CudaGroupOptions from_environment();
};

class CudaThreadGroup {
 public:
  /// table: nullptr opens _cuda.so at the first operation; tests pass their own.
  explicit CudaThreadGroup(int world_size, const CudaGroupOptions& options = {}, const DcommCudaTable* table = nullptr);
  /// No rank may be inside a call. Waits for what was launched, 11 s at most.
  ~CudaThreadGroup();
  CudaThreadGroup(const CudaThreadGroup&) = delete;
  CudaThreadGroup& operator=(const CudaThreadGroup&) = delete;

  int world_size() const { return queues_.world_size(); }

  /// Makes what the GPU needs now instead of at the first operation. Throws kCuda; kInvalidArgument where the ranks
  /// have met on another device.
  void open(int device);
  /// Where the ranks have met; -1: nowhere yet.
  int device();

  /// One thread per rank; any collective, all_to_all with blocks of one length. Throws on every rank alike: kMismatch
  /// (collective, dtype, count, op, wire, algo, root or device differ), kInvalidArgument, kCuda; kTimeout naming the
  /// missing ranks; kPeerLost after leave() of another; kAborted. What a kernel reported since the last call is thrown
  /// first. All but the first two leave the group broken.
  /// send and recv: returns when the other rank has called too. kMismatch (count, dtype or device differ, or the two
  /// wait for each other in calls that do not go together) breaks the group; kPeerLost after leave() of the other.
  void run(int rank, const CudaRankCall& call);

  /// run() for a call with a Work: never waits. When another rank completes the operation it is launched; where that
  /// fails, the Work and all later calls throw, for whoever has called may look no more. Throws what is known by now.
  void post(int rank, const CudaRankCall& call);
  /// Blocks until a posted call is launched or given up, which the Work tells. When the time is over: is_final breaks
  /// the group with kTimeout naming the missing; else throws it, and the operation may still come. kInterrupted.
  struct Patience {
    int64_t timeout_ns = 0;
    bool is_final = true;
    InterruptCheck interrupted = nullptr;  // asked every 50 ms
    void* argument = nullptr;
  };
  void await(int rank, const CudaWork& work, const Patience& patience);
  /// Takes a posted call back. False: too late, it is launched or given up.
  bool withdraw(int rank, const CudaWork& work);

  /// run() for a thread that plays all ranks: never waits. The call that completes an operation launches it, and throws
  /// what all would.
  void collect(int rank, const CudaRankCall& call);
  /// Forgets collected calls that were not launched. Throws kMismatch naming them where `complain`; stays usable.
  void end_collecting(bool complain);

  /// Throws what breaks the group, kernels' reports included.
  void check_reports(int rank);
  /// Blocks until the last launched operation is done (kTimeout if not in time), then throws what the GPU reported.
  void synchronize_check(int rank, int64_t timeout_ns);

  /// Ends what waits, on the host and on the GPU, with kAborted on all ranks. Any thread, never waits for the GPU.
  void stop(const std::string& reason);
  /// `rank` will call no more: who needs it raises kPeerLost instead of waiting.
  void leave(int rank);

 private:
  using Pending = CudaCallQueues::Pending;
  using Outcome = CudaOutcome;

  void check_usable(int rank);
  void check_free(int rank) const;
  void refuse_lost_peers(const Pending& mine);
  void refuse_dead_end(const Pending& mine);
  void wait(std::unique_lock<std::mutex>& lock, const Pending& mine, const Patience& patience);
  Pending queue(int rank, const CudaRankCall& call, CudaCallManner manner);
  void note_stream(const Pending& mine);
  Outcome advance();
  Outcome start(const std::vector<Pending>& parts);
  void end(const std::vector<Pending>& parts, const Outcome& outcome);
  void open_locked(int device);
  void launch(const std::vector<Pending>& parts);
  void break_group(const Outcome& outcome);
  std::vector<int> list_left() const;
  const DcommCudaTable& table();

  const CudaGroupOptions options_;
  std::mutex mutex_;
  std::condition_variable call_ended_;
  const DcommCudaTable* table_;
  DcommCudaGroup* group_ = nullptr;
  std::shared_ptr<CudaEvents> events_;
  int device_ = -1;
  CudaCallQueues queues_;
  std::vector<bool> left_;  // by rank
  Outcome broken_;          // kOk: usable
};

}  // namespace dcomm
