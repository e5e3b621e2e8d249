// Ranks that are threads of one process and share one GPU: they meet on the host, one of them launches for all.
// Floor: launch (plain C++; no CUDA header).
//
// A call blocks the host until every rank has called, or its deadline; then it is asynchronous to the GPU: each
// rank's part runs in order on that rank's stream. What all ranks must agree on is compared while they meet, so a
// mismatch raises on all of them before anything is launched, and the group stays usable.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "base/error.h"
#include "exec/host_exec.h"
#include "launch/cuda_api.h"
#include "launch/host_launch.h"

namespace dcomm {

/// 0: chosen when the first operation comes.
struct CudaGroupOptions {
  int num_channels = 0;     // thread blocks per rank
  uint64_t slot_bytes = 0;  // a multiple of 4096

  /// Reads DCOMM_CUDA_CHANNELS and DCOMM_CUDA_SLOT_BYTES. Throws kInvalidArgument naming the variable and its value.
  static CudaGroupOptions from_environment();
};

/// One rank's part of a call. `stream`: cudaStream_t; nullptr is the legacy default stream.
struct CudaRankCall {
  int device = 0;
  CollectiveCall call;
  void* stream = nullptr;
  int64_t timeout_ns = 0;                // until all ranks have come, and of each wait on the GPU (there 1 s more)
  InterruptCheck interrupted = nullptr;  // asked every 50 ms while the host waits
  void* argument = nullptr;
};

class CudaThreadGroup {
 public:
  /// table: nullptr opens _cuda.so at the first operation; tests pass their own.
  explicit CudaThreadGroup(int world_size, const CudaGroupOptions& options = {}, const DcommCudaTable* table = nullptr);
  /// No rank may be inside a call. Waits for what was launched, 11 s at most.
  ~CudaThreadGroup();
  CudaThreadGroup(const CudaThreadGroup&) = delete;
  CudaThreadGroup& operator=(const CudaThreadGroup&) = delete;

  int world_size() const { return static_cast<int>(ranks_.size()); }

  /// One thread per rank; any collective but send and recv, all_to_all with blocks of one length. Throws on every rank
  /// alike: kMismatch (collective, dtype, count, op, wire, algo, root or device differ), kInvalidArgument, kCuda;
  /// kTimeout naming the missing ranks; kPeerLost after leave() of another; kAborted. What a kernel reported since the
  /// last call is thrown first. All but the first two leave the group broken.
  void run(int rank, const CudaRankCall& call);

  /// Blocks until the last launched operation is done (kTimeout if not in time), then throws what the GPU reported.
  void synchronize_check(int rank, int64_t timeout_ns);

  /// Ends what waits, on the host and on the GPU, with kAborted on all ranks. Any thread, never waits for the GPU.
  void stop(const std::string& reason);
  /// `rank` will call no more: who needs it raises kPeerLost instead of waiting.
  void leave(int rank);

 private:
  struct Outcome {
    ErrorCode code = ErrorCode::kOk;
    std::string message;
  };
  struct Rank {
    bool waiting = false;
    bool left = false;
    CudaRankCall call;
    Outcome outcome;  // of the round that it waited for last
  };

  void check_usable(int rank);
  void wait_for_others(std::unique_lock<std::mutex>& lock, int rank, const CudaRankCall& call);
  void end_round(const Outcome& outcome);
  Outcome run_round();
  Outcome find_disagreement() const;
  void launch(const CudaRankCall& first);
  void break_group(ErrorCode code, const std::string& message);
  std::string list_ranks(bool (*wanted)(const Rank&)) const;
  const DcommCudaTable& table();

  const CudaGroupOptions options_;
  std::mutex mutex_;
  std::condition_variable round_ended_;
  const DcommCudaTable* table_;
  DcommCudaGroup* group_ = nullptr;
  int device_ = -1;
  std::vector<Rank> ranks_;
  int num_waiting_ = 0;
  uint64_t round_ = 0;  // completed ones
  Outcome broken_;      // kOk: usable
};

}  // namespace dcomm
