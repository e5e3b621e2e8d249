#include "exec/cpu_sharing.h"

#include <sched.h>

#include <array>
#include <atomic>

namespace dcomm {

namespace {

constexpr int64_t kLookEveryNs = 100'000;    // one load for each rank, and a system call
constexpr int64_t kMoveEveryNs = 2'000'000;  // a migration, which the kernel may undo

int cpu_of(const HostContext& context, int rank) {
  const Header& header = context.control(rank).header;
  return static_cast<int>(std::atomic_ref(const_cast<uint32_t&>(header.cpu)).load(std::memory_order_relaxed));
}

/// Runs this thread on one of `targets`; afterwards it may run where it was `allowed` to before.
void move_to(const HostContext& context, const cpu_set_t& targets, const cpu_set_t& allowed) {
  if (sched_setaffinity(0, sizeof(targets), &targets) != 0) return;
  std::atomic_ref(context.control(context.rank).header.cpu)
      .store(static_cast<uint32_t>(sched_getcpu()), std::memory_order_relaxed);
  sched_setaffinity(0, sizeof(allowed), &allowed);
}

}  // namespace

bool shares_cpu_with(const HostContext& context, int peer) { return cpu_of(context, peer) == sched_getcpu(); }

void leave_cpu_of(const HostContext& context, int peer) {
  const int cpu = sched_getcpu();
  if (cpu < 0 || cpu_of(context, peer) != cpu) return;
  if (context.rank < peer && !context.spin_history.failing_for_long()) return;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) != 0) move_to(context, others, allowed);
}

void spread_over_cpus(HostContext& context, int64_t now_ns) {
  if (now_ns < context.next_spread_ns.load(std::memory_order_relaxed)) return;
  context.next_spread_ns.store(now_ns + kLookEveryNs, std::memory_order_relaxed);
  const int own = sched_getcpu();
  if (own < 0 || own >= CPU_SETSIZE) return;
  std::array<int, CPU_SETSIZE> num_ranks{};
  for (int rank = 0; rank < context.world_size; ++rank) {
    const int cpu = rank == context.rank ? own : cpu_of(context, rank);
    if (cpu < 0 || cpu >= CPU_SETSIZE) continue;
    if (cpu == own && rank > context.rank) return;  // its turn
    ++num_ranks[static_cast<size_t>(cpu)];
  }
  cpu_set_t allowed;
  if (num_ranks[static_cast<size_t>(own)] < 2 || sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  int emptiest = own;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed) && num_ranks[static_cast<size_t>(cpu)] < num_ranks[static_cast<size_t>(emptiest)]) {
      emptiest = cpu;
    }
  }
  if (num_ranks[static_cast<size_t>(own)] - num_ranks[static_cast<size_t>(emptiest)] < 2) return;
  context.next_spread_ns.store(now_ns + kMoveEveryNs, std::memory_order_relaxed);
  cpu_set_t target;
  CPU_ZERO(&target);
  CPU_SET(emptiest, &target);
  move_to(context, target, allowed);
}

}  // namespace dcomm
