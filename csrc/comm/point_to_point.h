// Messages from rank to rank: sends and receives that are under way together, and who takes which message. Floor: comm.
//
// A message goes to the receive posted first among those that match its sender and tag; a receive takes the first
// message that matches. Messages that nobody has asked for yet are stashed. Whoever waits for a send or a receive of
// its own moves all of them, and takes in what the peers send meanwhile: so nothing waits behind anything else, and
// ranks that all send first do not wait for each other for ever. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "comm/inbox.h"
#include "exec/host_exec.h"
#include "launch/host_launch.h"

namespace dcomm {

/// The fingerprint of every message: two ranks alone cannot know what else the group has done.
inline constexpr uint64_t kMessageHash = 0x6d65737361676573ull;

/// A send or recv under way. Its owner keeps it where it is until move() has returned it or forget() was called.
struct Posted {
  const CollectiveCall* call = nullptr;  // root: the peer, of a recv also kAnySource
  int64_t timeout_ns = 0;                // nothing of it has moved for so long: too late
  int64_t warn_ns = 0;

  ChunkPlan plan;           // of a send's bytes
  uint64_t next_piece = 0;  // of a send; 0: the envelope
  int source = kAnySource;  // of a recv, once it has a message
  int64_t since_ns = 0;     // when something of it moved last; 0: since the clocks were looked at
  bool has_warned = false;
  uint64_t sent_bytes = 0;

  bool is_done = false;
  Failure failure;      // otherwise
  std::string problem;  // what differed, or what there was no memory for

  bool is_send() const { return call->collective == Collective::kSend; }
  /// The one rank that it waits for, or kAnySource.
  int peer() const { return source != kAnySource ? source : call->root; }
};

class PointToPoint {
 public:
  PointToPoint(HostContext& context, LaneScratch& scratch);

  /// How a thread that moves messages waits.
  struct Waiting {
    WaitPolicy policy;
    InterruptCheck interrupted = nullptr;
    std::function<void(const Posted& posted, int64_t waited_ns)> stalled;
    /// Ends the wait; called often. Then more may be posted: that a message which nobody has asked for yet finds no
    /// memory fails nothing before its deadline. Empty: nothing more is posted.
    std::function<bool()> has_news;
  };

  void post(Posted& posted);
  /// Moves messages until one that was posted has ended, well or badly, and returns it. nullptr: waiting.has_news().
  Posted* move(const Waiting& waiting);
  /// Drops all that is posted: the communicator is broken, and nothing will be posted again.
  void forget();

 private:
  HostExec executor() { return {context_, op_, one_lane_, 0, 0, scratch_}; }
  int peer_after(int rank, int step) const { return (rank + step) % context_.world_size; }
  std::vector<Posted*>& sends_to(int dst) { return sends_[static_cast<size_t>(dst)]; }

  bool move_all();
  bool send_to(HostExec& exec, int dst);
  bool read_from(HostExec& exec, int src);
  bool can_move();

  void post_recv(Posted& posted);
  void claim(Posted& posted, int src, Incoming& message);
  bool is_expected(Posted& posted, int src, const Envelope& envelope);
  void finish(Posted& posted);
  void fail(Posted& posted, const Failure& failure);
  void remove(Posted& posted);
  Posted* take_ended();

  bool is_alarmed() const;
  void read_signs();
  bool is_stopped(const Posted& posted, Failure& failure) const;
  bool fail_stopped();
  bool fail_stuck(Posted& posted);
  void look_at_clocks(const Waiting& waiting, int64_t now_ns);
  int awaited_peer() const;

  HostContext& context_;
  LaneScratch& scratch_;
  LaneBarrier one_lane_{1};
  HostOp op_;  // nothing that it runs waits: it needs no deadline
  HostKernels byte_kernels_;
  Inbox inbox_;
  std::vector<Posted*> posted_;              // all that have not ended, in the order of their calls
  std::vector<std::vector<Posted*>> sends_;  // of these, by receiver; the first one is on its way
  std::vector<Posted*> receives_;            // of these: those that have no message yet
  std::vector<Posted*> ended_;               // not returned yet
  int next_source_ = 0;                      // who is looked at first: everybody in turn
  int64_t next_clock_ns_ = 0;                // when to look at deadlines
  int64_t next_deadline_ns_ = 0;
  uint64_t abort_word_ = 0;         // as read_signs() found it
  std::vector<AbortDetail> exits_;  // by rank; likewise
};

}  // namespace dcomm
