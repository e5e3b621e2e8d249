// How the progress thread asks the kernel for its turn. Floor: comm.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace dcomm {

/// struct sched_attr in its first version; <linux/sched/types.h> cannot be included beside <sched.h>.
struct SchedulingAttributes {
  uint32_t nbytes;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime_ns;  // of the fair scheduler: the slice
  uint64_t deadline_ns;
  uint64_t period_ns;
};

/// The calling thread will run in slices of 0.1 ms, the shortest there are, so that it gets a core soon after it wakes,
/// also where threads that compute fill all cores: from Linux 6.12 on the scheduler lets a waking thread with a shorter
/// slice go first. Its share of the time stays what it was, and no privilege is needed. Older kernels, which have one
/// slice for all, take the call and change nothing; where it is refused (seccomp) nothing is lost either.
inline void ask_for_short_slices() {
  constexpr uint64_t kSliceNs = 100'000;
  constexpr uint32_t kFair = 0;  // SCHED_OTHER
  SchedulingAttributes attributes{};
  if (::syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) != 0) return;
  if (attributes.policy != kFair) return;  // what somebody has chosen stays
  attributes.runtime_ns = kSliceNs;
  ::syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace dcomm
