// One rank of a group whose ranks are processes: it launches its own grid, at its own time. Floor: launch (plain C++).
//
// Nothing here waits for another rank: kernels meet in the windows, on the GPU. What they report is raised at the next
// call, or when the host waits. Whoever watches the other processes tells this object of their ends.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "launch/cuda_api.h"
#include "launch/cuda_call_queues.h"

namespace dcomm {

/// How many messages a rank has launched to another and from it.
struct CudaMessageCounts {
  uint64_t sent = 0;
  uint64_t received = 0;
};

/// What the owner knows of the other ranks.
struct CudaProcessPeers {
  std::vector<int> pids;  // by rank; 0: unknown
  /// Notes where the other ranks can read it what this rank is about to launch, and then that it has. Its seq counts
  /// from 1: a collective's those of the group; a message's those of its kind with that peer (root).
  std::function<void(const OpRecord& record)> launching;
  std::function<void(const OpRecord& record)> launched;
  /// The number of the collective that `rank` launched last.
  std::function<uint64_t(int rank)> position;
  /// What `rank` has launched to and from this rank.
  std::function<CudaMessageCounts(int rank)> messages;
  /// Both calls of a disagreement, in words; "" where they are not known any more.
  std::function<std::string(const DcommCudaFailure& failure)> disagreement;
  /// Why a message has waited in vain, in words.
  std::function<std::string(const DcommCudaFailure& failure)> stalled_message;
};

struct CudaProcessOptions {
  int rank = 0;
  int device = 0;
  int64_t least_timeout_ns = 0;  // of waits on the GPU, whatever a call says
};

class CudaProcessGroup {
 public:
  /// Owns `group` from now on.
  CudaProcessGroup(const DcommCudaTable& table, DcommCudaGroup* group, std::shared_ptr<CudaEvents> events,
                   const CudaProcessOptions& options, CudaProcessPeers peers);
  /// Waits for what was launched, 11 s at most.
  ~CudaProcessGroup();
  CudaProcessGroup(const CudaProcessGroup&) = delete;
  CudaProcessGroup& operator=(const CudaProcessGroup&) = delete;

  int device() const { return options_.device; }

  /// One thread at a time. Any collective, all_to_all with blocks of one length; one side of a message. Asynchronous to
  /// the host; this rank's part runs in order on call.stream. Throws kInvalidArgument, which leaves the group usable
  /// and the other ranks waiting; what a kernel reported since the last call (kMismatch, kTimeout); kPeerLost;
  /// kAborted; kCuda.
  void run(const CudaRankCall& call);
  /// Blocks until the last launched operation is done (kTimeout if not in time), then throws what the GPU reported. A
  /// peer that was lost since is none of its business.
  void synchronize_check(int64_t timeout_ns);
  /// Throws what the GPU has reported. A peer that was lost since is none of its business.
  void check_reports();
  /// True once something was thrown that is final.
  bool is_broken() const;

  // ---- Any thread; they never wait.

  /// Ends what runs on the GPU, here and, where it runs, on all ranks.
  void stop(const CudaOutcome& reason);
  /// A peer that left (did not die) after it had launched its part of everything, messages too, fails nothing.
  void note_exit(int peer, bool died);
  /// In a forked child: the GPU is the parent's.
  void abandon();
  /// The other processes may have this one's window open at the end.
  void keep_windows() { table_.group_keep_windows(group_); }

 private:
  enum : uint8_t { kThere = 0, kLeft = 1, kDied = 2 };

  CudaOutcome find_failure();
  CudaOutcome find_disagreement() const;
  void prefer_report();
  void check_usable();
  void check_call(const CudaRankCall& call) const;
  void run_collective(const CudaRankCall& call);
  void run_message(const CudaRankCall& call);
  bool has_met(int peer) const;
  void check_peers(const CudaRankCall& call, int first, int last);
  void launch(const CudaRankCall& call, const OpRecord& record, std::atomic<uint64_t>& number, uint64_t fingerprint);
  CudaOutcome describe_exit(int peer) const;
  int find_exit() const;
  std::string describe_positions() const;
  void break_group(const CudaOutcome& outcome);
  void break_group_by_exit(const CudaOutcome& outcome, bool in_order);

  const DcommCudaTable& table_;
  DcommCudaGroup* group_;
  const std::shared_ptr<CudaEvents> events_;
  const CudaProcessOptions options_;
  const CudaProcessPeers peers_;
  std::vector<std::atomic<uint8_t>> exits_;  // by rank
  std::atomic<uint64_t> num_launched_{0};    // collectives; set before the launch
  std::vector<std::atomic<uint64_t>> sent_;  // by rank: messages; so
  std::vector<std::atomic<uint64_t>> received_;
  mutable std::mutex mutex_;
  CudaOutcome broken_;           // kOk: usable
  bool broken_by_exit_ = false;  // of a peer that left: what the GPU may still report would say more
};

}  // namespace dcomm
