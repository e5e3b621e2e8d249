// Words for a failed operation: who, what, where everybody stands, one next step. Floor: comm.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "comm/listing.h"
#include "exec/host_exec.h"

namespace dcomm {

/// pid_of: names a peer's process, 0 when the ranks are threads.
/// exit_status: how the lost rank's process ended (comm/exit_status.h); empty where that is not known.
std::string describe_failure(const HostContext& context, const OpRecord& record, const Failure& failure,
                             const std::vector<int>& pids, const Listing& listing, const std::string& exit_status = "");

/// What `rank` has said of why it leaves or aborts: " (KeyError: 'x' at train.py:88)"; "" where it has not.
std::string because(const HostContext& context, int rank);

/// Whom the text of a failure is about: the lost rank, or the one that was late; none where no rank sent to "any".
NamedRanks ranks_of(const HostContext& context, const Failure& failure, const std::vector<int>& pids);

/// Whoever has died so far and is not among `known`.
NamedRanks other_deaths(const HostContext& context, const NamedRanks& known, const std::vector<int>& pids);

/// "; rank 2 (pid 71) died too"; empty where nobody has.
std::string describe_other_deaths(const NamedRanks& others);

/// "died": how a rank has gone.
const char* exit_text(AbortDetail how);

/// "send(count=10, dtype=float32, dst=1, tag=0)".
std::string call_text(const OpRecord& record);

/// "all_reduce #42"; send, recv and split have no number.
std::string operation_text(const OpRecord& record);

/// "rank 0 in #42, called at train.py:88, rank 1 finished #41": every rank's position as its header says.
std::string describe_positions(const HostContext& context);

/// The rank with the oldest operation; `suspect` where it is not behind any other.
int rank_behind(const HostContext& context, int suspect);

}  // namespace dcomm
