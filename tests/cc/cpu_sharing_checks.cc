// Ranks that share CPUs: who leaves which CPU, and that nobody's affinity is changed for good.
#include <sched.h>

#include <vector>

#include "check.h"
#include "exec/cpu_sharing.h"

namespace dcomm::checks {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

/// Of as many ranks as `cpus` has numbers, all of which were last seen on those.
class SharedCpus {
 public:
  explicit SharedCpus(const std::vector<int>& cpus) {
    const int world_size = static_cast<int>(cpus.size());
    const WindowLayout layout{{PlacementKind::kBounce, world_size, 2}, 1, {64, 64, 64, 64, 64, 0}, 64};
    const auto windows = make_heap_windows(world_size, layout.window_bytes());
    for (int rank = 0; rank < world_size; ++rank) {
      contexts_.push_back(std::make_unique<HostContext>(rank, windows, layout));
      set_cpu(rank, cpus[static_cast<size_t>(rank)]);
    }
  }
  HostContext& context(int rank) { return *contexts_[static_cast<size_t>(rank)]; }
  void set_cpu(int rank, int cpu) { header(rank).cpu = static_cast<uint32_t>(cpu); }
  int cpu(int rank) { return static_cast<int>(header(rank).cpu); }

 private:
  Header& header(int rank) { return context(rank).control(rank).header; }
  std::vector<std::unique_ptr<HostContext>> contexts_;
};

/// This thread's CPUs, as they were when it is destroyed.
class Affinity {
 public:
  Affinity() { sched_getaffinity(0, sizeof(allowed_), &allowed_); }
  ~Affinity() { restore(); }
  void restore() const { sched_setaffinity(0, sizeof(allowed_), &allowed_); }
  bool is_unchanged() const {
    cpu_set_t now;
    return sched_getaffinity(0, sizeof(now), &now) == 0 && CPU_EQUAL(&now, &allowed_);
  }
  std::vector<int> cpus() const {
    std::vector<int> found;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &allowed_)) found.push_back(cpu);
    }
    return found;
  }
  /// Brings this thread to `cpu`, where it mostly stays for the moment that a check takes.
  void start_on(int cpu) const {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof(one), &one);
    restore();
  }

 private:
  cpu_set_t allowed_;
};

/// Whether `act`, begun on `cpu`, made `rank` leave for `target`; tries again should the kernel move the thread.
template <class Act>
bool moves(SharedCpus& ranks, int rank, int cpu, int target, const Affinity& affinity, const Act& act) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    ranks.set_cpu(rank, cpu);
    affinity.start_on(cpu);
    if (sched_getcpu() != cpu) continue;
    act();
    if (ranks.cpu(rank) == target) return true;
  }
  return false;
}

}  // namespace

CHECK_CASE(cpu_sharing_the_highest_rank_of_a_full_cpu_leaves) {
  const Affinity affinity;
  const std::vector<int> cpus = affinity.cpus();
  if (cpus.size() < 2) return;  // nowhere to go
  const int full = cpus[0];
  const int empty = cpus[1];
  SharedCpus ranks({full, full, full, empty});
  int64_t now = kSecond;
  const auto spread = [&](int rank) { spread_over_cpus(ranks.context(rank), now += kSecond); };
  EXPECT(!moves(ranks, 1, full, empty, affinity, [&] { spread(1); }));  // rank 2 goes first
  EXPECT(moves(ranks, 2, full, empty, affinity, [&] { spread(2); }));
  EXPECT(affinity.is_unchanged());
  EXPECT(!moves(ranks, 1, full, empty, affinity, [&] { spread(1); }));  // two and two now
  EXPECT(affinity.is_unchanged());
}

CHECK_CASE(cpu_sharing_moves_are_rare) {
  const Affinity affinity;
  const std::vector<int> cpus = affinity.cpus();
  if (cpus.size() < 2) return;
  const int full = cpus[0];
  const int empty = cpus[1];
  SharedCpus ranks({full, full, full, empty});
  int64_t now = 0;
  const auto spread_after = [&](int64_t pause_ns) { spread_over_cpus(ranks.context(2), now += pause_ns); };
  EXPECT(moves(ranks, 2, full, empty, affinity, [&] { spread_after(kSecond); }));
  EXPECT(!moves(ranks, 2, full, empty, affinity, [&] { spread_after(19'000); }));  // 1.9 ms in all
  EXPECT(moves(ranks, 2, full, empty, affinity, [&] { spread_after(100'000); }));
}

CHECK_CASE(cpu_sharing_a_pinned_rank_stays) {
  const Affinity before;
  const int cpu = before.cpus()[0];
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof(one), &one);
  {
    const Affinity pinned;
    SharedCpus ranks({cpu, cpu, cpu, cpu});
    spread_over_cpus(ranks.context(3), kSecond);
    leave_cpu_of(ranks.context(3), 0);
    EXPECT_EQ(ranks.cpu(3), cpu);
    EXPECT(pinned.is_unchanged());
    EXPECT(shares_cpu_with(ranks.context(3), 0));
  }
}

CHECK_CASE(cpu_sharing_the_higher_of_two_ranks_leaves) {
  const Affinity affinity;
  const std::vector<int> cpus = affinity.cpus();
  if (cpus.size() < 2) return;
  SharedCpus ranks({cpus[0], cpus[0]});
  EXPECT(!moves(ranks, 0, cpus[0], cpus[1], affinity, [&] { leave_cpu_of(ranks.context(0), 1); }));
  EXPECT(cpus.size() > 2 || moves(ranks, 1, cpus[0], cpus[1], affinity, [&] { leave_cpu_of(ranks.context(1), 0); }));
  EXPECT(affinity.is_unchanged());
}

}  // namespace dcomm::checks
