// Words for a failed operation: who, what, where everybody stands, one next step. Floor: comm.
#pragma once

#include <string>

#include "exec/host_exec.h"

namespace dcomm {

/// pid_of: names a peer's process, 0 when the ranks are threads.
std::string describe_failure(const HostContext& context, const OpRecord& record, const Failure& failure,
                             const std::vector<int>& pids);

/// "all_reduce #42"; send, recv and split have no number.
std::string operation_text(const OpRecord& record);

/// "rank 0 at #42, rank 1 at #41 (behind)": every rank's position as its header says.
std::string describe_positions(const HostContext& context);

/// The rank with the oldest operation; `suspect` where it is not behind any other.
int rank_behind(const HostContext& context, int suspect);

/// Notes in this rank's window what it has launched on its GPU; where rank `rank` is with that.
void store_cuda_record(const HostContext& context, const OpRecord& record);
uint64_t cuda_position(const HostContext& context, int rank);
/// Of ranks `a` and `b`, whose kernels found in operation number `number` (its low 16 bits) that their calls differ:
/// the first of both that do. "" where the windows do not have them any more.
std::string describe_cuda_disagreement(const HostContext& context, int a, int b, uint32_t number);

/// Reads and writes the records that lie in the windows, word by word (peers may look at any time).
void store_record(OpRecord& to, const OpRecord& record);
OpRecord load_record(const OpRecord& from);

}  // namespace dcomm
