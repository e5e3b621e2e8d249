// What the peers' messages bring, by sender: envelopes, and data that goes to a stash or to the array of the receive
// that takes the message. Floor: comm.
//
// A peer's messages come in one after the other, and only the last one may be incomplete. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "exec/host_exec.h"
#include "exec/host_tiles.h"
#include "protocol/envelope.h"

namespace dcomm {

struct Posted;

/// Messages are moved as bytes: whatever the dtype, no bit of it changes.
HostKernels byte_kernels();
/// How a message is cut into slots.
ChunkPlan plan_message(uint64_t count, DType dtype, const WindowLayout& layout);

/// A message whose envelope has come.
struct Incoming {
  Envelope envelope;
  ChunkPlan plan;              // of its bytes
  uint64_t next_tile = 0;      // those before it have come
  Posted* receiver = nullptr;  // nullptr: nobody has asked for it yet
  std::unique_ptr<std::byte[]> stash;
  std::byte* target = nullptr;  // the stash or the receiver's array; nullptr: not decided yet

  bool is_complete() const;
  /// What has come goes to `to`, and what is still to come as well.
  void hand_over(std::byte* to);
};

class Inbox {
 public:
  enum class Read : uint8_t { kNothing, kNoMemory, kEnvelope, kData };

  explicit Inbox(const HostContext& context);

  /// What lies in the next slot of `src`, if anything does, to newest(src). kNoMemory: it stays there, and the sender
  /// waits. Does not block.
  Read read_one(HostExec& exec, int src);
  /// Whether read_one would read something; false where it has just found no memory for it.
  bool has_news(HostExec& exec, int src) const;
  /// The message of `src` that nobody has asked for has no memory to come into.
  bool is_stuck(int src) const { return stuck_[static_cast<size_t>(src)] != 0; }

  Incoming& newest(int src) { return messages_of(src).back(); }
  /// The first message of `src` with this tag that nobody has asked for; nullptr: none.
  Incoming* find(int src, int tag);
  void erase(int src, const Incoming& message);

 private:
  std::list<Incoming>& messages_of(int src) { return messages_[static_cast<size_t>(src)]; }
  bool stash(Incoming& message);

  const WindowLayout& layout_;
  const HostKernels byte_kernels_;
  std::vector<std::list<Incoming>> messages_;  // by sender, in order; only the last may be incomplete
  std::vector<uint8_t> stuck_;                 // by sender
};

}  // namespace dcomm
