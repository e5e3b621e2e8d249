// Who belongs together after a split, and what the threads of one process hand each other then. Floor: comm.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "comm/settings.h"
#include "exec/host_context.h"
#include "launch/cuda_group.h"

namespace dcomm {

/// What every rank says in a split.
struct SplitVote {
  int64_t has_color = 0;  // 0: this rank goes into no child
  int64_t color = 0;
  int64_t key = 0;
};

struct SplitPlan {
  uint64_t id = 0;           // of the child; no other communicator of its members has it
  int rank = 0;              // in the child
  std::vector<int> members;  // parent ranks, in the child's order
};

/// This rank's child; nothing where it has no color. number: of the split on this parent.
std::optional<SplitPlan> plan_split(const std::vector<SplitVote>& votes, int own_rank, uint64_t parent_id,
                                    uint64_t number);

/// What the ranks of a communicator have in common when they are threads of one process.
struct ThreadParts {
  std::shared_ptr<Windows> windows;
  std::shared_ptr<PeerExits> exits;
  std::shared_ptr<CudaThreadGroup> cuda_group;

  static ThreadParts make(int world_size, const Settings& settings);
};

/// Where the first rank of a child leaves its parts for the others; shared by a communicator and its children.
class ThreadFamily {
 public:
  void offer(uint64_t id, ThreadParts parts);
  ThreadParts take(uint64_t id);
  void forget(uint64_t id);

 private:
  std::mutex mutex_;
  std::map<uint64_t, ThreadParts> offers_;
};

}  // namespace dcomm
