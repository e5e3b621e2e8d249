// Connecting every pair of ranks after the meeting. Floor: comm.
#pragma once

#include <vector>

#include "comm/meeting.h"
#include "comm/unix_socket.h"

namespace dcomm {

/// Rank j connects to the listener of every rank i with 0 < i < j and presents the job's token; the pairs
/// with rank 0 keep the meeting's sockets. Fills `sockets` (index = rank, own entry empty) as pairs come up,
/// so that the caller can tell the others of a failure. Throws kPeerLost or kTimeout.
void pair_with_all(const MeshOptions& options, Meeting* meeting, const GuardedFd& listener,
                   std::vector<GuardedFd>* sockets, Waiter& waiter);

}  // namespace dcomm
