// Messages from rank to rank: what has come in, and in which order it is handed out. Floor: comm.
//
// A peer's messages come in one after the other. A recv takes the first one with its tag; those that come before it
// with other tags are stashed. Whoever waits, in a send or in a recv, takes in what the peers send meanwhile: so ranks
// that all send first and receive then do not wait for each other for ever. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "exec/host_exec.h"
#include "launch/host_launch.h"
#include "protocol/envelope.h"

namespace dcomm {

/// The fingerprint of every message: two ranks alone cannot know what else the group has done.
inline constexpr uint64_t kMessageHash = 0x6d65737361676573ull;

class PointToPoint {
 public:
  PointToPoint(HostContext& context, LaneScratch& scratch);

  /// call.in to call.root; returns when all of it is in slots or taken. False: see op.failure.
  bool send(HostOp& op, const CollectiveCall& call, uint64_t* sent_bytes);
  /// The next message of call.root with call.tag to call.out. False: see op.failure, and problem() if that is a
  /// mismatch. Throws kInternal where there is no memory for the messages before it.
  bool recv(HostOp& op, const CollectiveCall& call);
  /// Takes in what has come, and what comes within microseconds, from all peers. Also while send() or recv() waits.
  void drain();

  /// What differed between the message and the recv that took it.
  const std::string& problem() const { return problem_; }

 private:
  /// A message whose envelope has come.
  struct Incoming {
    Envelope envelope;
    ChunkPlan plan;          // of its bytes
    uint64_t next_tile = 0;  // those before it have come
    std::unique_ptr<std::byte[]> stash;
    std::byte* target = nullptr;  // the stash or the caller's array; nullptr: not decided yet
    bool is_complete() const;
  };

  HostExec executor(HostOp& op) { return {context_, op, one_lane_, 0, 0, scratch_}; }
  std::list<Incoming>& messages_of(int rank) { return messages_[static_cast<size_t>(rank)]; }
  bool read_envelope(HostExec& exec, int src);
  bool read_segment(HostExec& exec, int src, Incoming& message) const;
  bool read_one_that_has_come(HostExec& exec, int src);
  bool is_mid_message(int src);
  static bool stash(Incoming& message);
  static void hand_over(Incoming& message, std::byte* to);
  bool is_expected(HostOp& op, const CollectiveCall& call, const Envelope& envelope);

  HostContext& context_;
  LaneScratch& scratch_;
  LaneBarrier one_lane_{1};
  HostKernels byte_kernels_;
  std::vector<std::list<Incoming>> messages_;  // by sender, in order; only the last may be incomplete
  std::string problem_;
};

}  // namespace dcomm
