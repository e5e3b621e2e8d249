// How a thread that waits passes the time: it polls, then offers its core, then sleeps. Floor: exec.
#pragma once

#include <sched.h>
#include <time.h>

#include <cstdint>

#include "exec/cpu_sharing.h"
#include "exec/host_context.h"

namespace dcomm {

inline constexpr int kPollsPerClock = 64;
inline constexpr int64_t kMaxSleepNs = 10'000'000;
inline constexpr int64_t kInterruptCheckNs = 50'000'000;

inline int64_t steady_now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000ll + now.tv_nsec;
}

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// One wait, for `peer` above all, which began at start_ns.
class WaitPace {
 public:
  WaitPace(HostContext& context, const WaitPolicy& policy, int peer, int64_t start_ns)
      : context_(context),
        policy_(policy),
        peer_(peer),
        start_ns_(start_ns),
        spin_ns_(context.spin_history.budget_ns(policy.spin_ns)) {}

  /// The first look, of about 1 us and without a clock; true: arrived.
  template <class Arrived>
  static bool look(const HostContext& context, const WaitPolicy& policy, int peer, Arrived&& arrived) {
    const bool may_poll = !policy.shared || !shares_cpu_with(context, peer);
    for (int poll = 0; may_poll && poll < kPollsPerClock; ++poll) {
      if (arrived()) return true;
      cpu_relax();
    }
    return false;
  }

  /// A turn of the wait; true: arrived. sleep(): sleeps until something moves, not for long.
  template <class Arrived, class Sleep>
  bool pass(int64_t waited_ns, Arrived&& arrived, Sleep&& sleep) {
    if (waited_ns < spin_ns_) {
      for (int poll = 0; poll < kPollsPerClock; ++poll) {
        if (arrived()) {
          context_.spin_history.note(true);
          return true;
        }
        cpu_relax();
      }
    } else if (waited_ns < spin_ns_ + policy_.yield_ns) {
      if (arrived()) return true;
      sched_yield();
      if (policy_.shared) spread_over_cpus(context_, start_ns_ + waited_ns);
      for (int poll = 0; policy_.shared && poll < kPollsPerClock && !shares_cpu_with(context_, peer_); ++poll) {
        if (arrived()) return true;
        cpu_relax();
      }
    } else {
      if (!has_slept_) {
        has_slept_ = true;
        context_.spin_history.note(false);
        if (policy_.may_move) leave_cpu_of(context_, peer_);
      }
      sleep();
    }
    return arrived();
  }

 private:
  HostContext& context_;
  const WaitPolicy policy_;
  const int peer_;
  const int64_t start_ns_;
  const int64_t spin_ns_;
  bool has_slept_ = false;
};

}  // namespace dcomm
