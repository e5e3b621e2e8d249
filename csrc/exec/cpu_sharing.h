// Which CPU each rank runs on, where ranks share them, and how a rank leaves one. Floor: exec.
//
// Ranks tell each other their CPU in their headers (begin_operation). What is read here may be a moment old: it decides
// how a rank waits and where it runs, never what it computes.
#pragma once

#include "exec/host_context.h"

namespace dcomm {

/// Whether `peer` was last seen on the CPU that runs this thread.
bool shares_cpu_with(const HostContext& context, int peer);

/// Leaves the CPU that this thread shares with `peer`. Two ranks that wake each other in turn on one CPU are never
/// runnable at the same time, so the kernel sees no load to balance and leaves them there, at two context switches a
/// message, beside an idle CPU. One leaves, the higher rank first.
void leave_cpu_of(const HostContext& context, int peer);

/// Where there are more ranks than CPUs: moves this rank, the highest of its CPU, to one that has at least two ranks
/// fewer. The kernel evens that out as well, but a burst of operations, all held up by the fullest CPU, is over before.
/// Looks at most once in 100 us; now_ns: any monotonic clock.
void spread_over_cpus(HostContext& context, int64_t now_ns);

}  // namespace dcomm
