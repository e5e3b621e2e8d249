// Meeting of the ranks of one job at rank 0's abstract socket. Floor: comm.
//
// Names: "dcomm-<token>" when the ranks share a secret token (exact), else "dcomm-<hash of the key>.0" to
// ".15": rank 0 takes the first one that no other user holds, a connector skips a listener of another user.
// Phases: 1. hello to rank 0, 2. rank 0 waits until every rank is seated, 3. welcome: job token and the names
// of all ranks' own listeners. The connection to rank 0 stays as the pair's socket.
//
// Two jobs with one key. The name is the same, so only one rank 0 can hold it; the other knocks with its own
// hello, waits up to 2 s for the holder to vanish (a former incarnation that is shutting down), then raises.
// Ranks of both jobs may knock at the one door. They are told apart by their launcher (parent process and its
// start time; a child of rank 0 counts as rank 0's own), used as a tie-breaker only:
//   - two claims to one rank: the one with rank 0's own launcher wins; among equals the first one stays;
//     the loser raises "another job holds this meeting point; set DCOMM_JOB_ID";
//   - once another job's rank 0 has knocked, no rank of its launcher is seated any more;
//   - a full table with a rank of a foreign launcher waits 1 s for a better claim before it becomes a group.
// So at most one group forms of those who meet. Jobs started by torchrun, mpirun, srun or `dcomm run` never
// mix when they start within 1 s of each other. Not detectable: ranks of two jobs started with one key from
// the very same parent (one shell, by hand) are interchangeable, and may be grouped as they come; a rank that
// arrives after the group has formed finds nobody and times out. With exact = true the token excludes all
// this.
#pragma once

#include <string>
#include <vector>

#include "comm/hello.h"
#include "comm/mesh.h"
#include "comm/unix_socket.h"

namespace dcomm {

struct Meeting {
  Token token{};                   // of the job, made by rank 0
  std::vector<Token> listeners;    // names of the ranks' own listeners, index = rank
  std::vector<GuardedFd> sockets;  // rank 0: one per rank; other ranks: only [0]
  GuardedFd door;                  // rank 0: the meeting's listener, open until close_meeting()
  std::vector<GuardedFd> rivals;   // rank 0: rank 0s of other jobs and late visitors, to be refused at the end
};

/// Both block until the meeting is complete or throw. `own.listener` must be listening already.
Meeting host_meeting(const MeshOptions& options, const Hello& own, Waiter& waiter);
Meeting join_meeting(const MeshOptions& options, const Hello& own, Waiter& waiter);

/// Rank 0's listener at the meeting point. Throws kInvalidArgument when another job keeps it.
GuardedFd open_door(const MeshOptions& options, const Hello& own, Waiter& waiter);

/// Refuses whoever still waits at the door, and closes it. Rank 0, after the last acknowledgement.
void close_meeting(const MeshOptions& options, Meeting* meeting);

/// Number and text of the names of this meeting point.
int num_meeting_names(const MeshOptions& options);
std::string meeting_name(const MeshOptions& options, int index);
std::string listener_name(const Token& token);

/// The token in the key when exact, else zeros; throws kInvalidArgument unless it is 32 hex digits.
Token meeting_token(const MeshOptions& options);
/// Hash of a process's pid and start time; 0 when /proc does not tell.
uint64_t process_identity(pid_t pid);

/// "ranks 1, 3 did not arrive within 5.0 s; meeting point ...".
std::string missing_text(const MeshOptions& options, const std::string& ranks, const std::string& when);
std::string other_job_text(const MeshOptions& options, const std::string& why);

}  // namespace dcomm
