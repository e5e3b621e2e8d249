// Who belongs together after a split, and what threads hand each other then. Floor: comm.
#include "comm/split.h"

#include <algorithm>

#include "protocol/fingerprint.h"

namespace dcomm {

std::optional<SplitPlan> plan_split(const std::vector<SplitVote>& votes, int own_rank, uint64_t parent_id,
                                    uint64_t number) {
  const SplitVote& own = votes[static_cast<size_t>(own_rank)];
  if (own.has_color == 0) return {};
  SplitPlan plan;
  plan.id = hash_mix(hash_mix(hash_mix(parent_id, number), static_cast<uint64_t>(own.color)), 0);
  for (size_t rank = 0; rank < votes.size(); ++rank) {
    if (votes[rank].has_color != 0 && votes[rank].color == own.color) plan.members.push_back(static_cast<int>(rank));
  }
  const auto key_of = [&](int rank) { return votes[static_cast<size_t>(rank)].key; };
  std::stable_sort(plan.members.begin(), plan.members.end(), [&](int a, int b) { return key_of(a) < key_of(b); });
  plan.rank = static_cast<int>(std::find(plan.members.begin(), plan.members.end(), own_rank) - plan.members.begin());
  return plan;
}

ThreadParts ThreadParts::make(int world_size, const Settings& settings) {
  return {make_heap_windows(world_size, settings.layout(world_size).window_bytes()),
          std::make_shared<PeerExits>(world_size),
          std::make_shared<CudaThreadGroup>(world_size, CudaGroupOptions::from_environment())};
}

void ThreadFamily::offer(uint64_t id, ThreadParts parts) {
  const std::lock_guard lock(mutex_);
  offers_[id] = std::move(parts);
}

ThreadParts ThreadFamily::take(uint64_t id) {
  const std::lock_guard lock(mutex_);
  return offers_.at(id);
}

void ThreadFamily::forget(uint64_t id) {
  const std::lock_guard lock(mutex_);
  offers_.erase(id);
}

}  // namespace dcomm
