// The host executor: one rank's lanes are threads that share a barrier. Floor: exec.
//
// In production a rank has one lane, the calling (or progress) thread, and the barrier is nothing. Tests use two
// or more, which stand for the threads of a CUDA block: a missing lane barrier is then a data race that
// ThreadSanitizer sees. Lanes take contiguous ranges (strided ones would share cache lines).
//
// Flags are reached through std::atomic_ref with release stores and acquire loads; no atomic_thread_fence,
// which ThreadSanitizer does not model.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "base/failpoint.h"
#include "base/mutation.h"
#include "exec/cpu_sharing.h"
#include "exec/host_context.h"
#include "protocol/exec.h"
#include "schedule/partition.h"

namespace dcomm {

/// Why an operation failed on this rank; `code` is set last.
struct Failure {
  ErrorCode code = ErrorCode::kOk;
  int culprit = -1;
  int reporter = -1;
  AbortDetail detail = AbortDetail::kNone;
  int64_t waited_ns = 0;
};

/// Called by a wait every 50 ms in the thread that runs the operation; true ends the wait (a signal handler
/// raised).
using InterruptCheck = bool (*)(void* argument);
/// Called once when a wait exceeds `warn_ns`.
using StallWarning = void (*)(void* argument, int peer, int64_t waited_ns);
/// Called once when a wait exceeds `note_ns`: so long that peers may ask where this rank is.
using StallNote = void (*)(void* argument);

/// One collective as one rank runs it; shared by its lanes and channels.
struct HostOp {
  uint64_t seq = 0;
  uint64_t hash = 0;
  WaitPolicy policy;
  int64_t timeout_ns = 300'000'000'000;
  int64_t warn_ns = 60'000'000'000;
  int64_t note_ns = 1'000'000'000;
  InterruptCheck interrupted = nullptr;
  StallWarning stalled = nullptr;
  StallNote noted = nullptr;
  void* argument = nullptr;
  /// Of two ranks alone: the other one, whose exit ends the operation and whose header says nothing about it. -1: all
  /// ranks take part.
  int only_peer = -1;
  /// The ranks found that they reach each other's inputs, and read them there.
  bool all_lent = false;

  std::atomic<int> failing{0};  // the first lane to set it writes `failure`
  std::atomic<bool> failed{false};
  Failure failure;
};

#if defined(DCOMM_TESTING)
/// With DCOMM_TEST_JITTER=1 in the environment: gives up the core, or sleeps, now and then.
void test_jitter();
/// Called by this thread in every turn of a wait, between its look at the flag and that at aborts and exits.
inline thread_local std::function<void()> test_turn_of_wait;
#endif

/// A reusable barrier of lanes that also combines a bit.
class LaneBarrier {
 public:
  explicit LaneBarrier(int num_lanes) : num_lanes_(num_lanes) {}
  int num_lanes() const { return num_lanes_; }
  /// True when any lane passed true. All lanes call it.
  bool any(bool mine);

 private:
  const int num_lanes_;
  std::atomic<int> arrived_{0};
  std::atomic<int> votes_[2]{};
  std::atomic<uint32_t> generation_{0};  // the lanes sleep on it
};

/// Memory that one lane alone uses while it runs operations.
struct LaneScratch {
  explicit LaneScratch(const HostContext& context)
      : pointers(2 * static_cast<size_t>(context.world_size)),
        packet_bytes(context.layout.packet_bytes / kLineBytes * kPacketPayloadBytes),
        packets((static_cast<size_t>(context.world_size) + 1) * packet_bytes) {}
  std::vector<void*> pointers;
  size_t packet_bytes;             // payload of one sender's packets of one message
  std::vector<std::byte> packets;  // by sender; then this rank's own
};

/// A lane's part of a message that travels in packets: whole lines, the last one perhaps not full.
struct PacketShare {
  size_t first_line = 0;
  size_t num_lines = 0;
  size_t offset = 0;  // bytes
  size_t nbytes = 0;
};

class HostExec {
 public:
  HostExec(HostContext& context, HostOp& op, LaneBarrier& lanes, int channel, int lane, LaneScratch& scratch)
      : context_(context), op_(op), lanes_(lanes), channel_(channel), lane_(lane), scratch_(scratch) {}

  int rank() const { return context_.rank; }
  int world_size() const { return context_.world_size; }
  int channel() const { return channel_; }
  const WindowLayout& layout() const { return context_.layout; }
  int lane() const { return lane_; }
  int num_lanes() const { return lanes_.num_lanes(); }
  bool any(bool mine) { return num_lanes() == 1 ? mine : lanes_.any(mine); }
  void sync() {
    if (num_lanes() > 1) lanes_.any(false);
  }

  template <class F>
  void for_each_pack(size_t count, F&& f) const {
    if (num_lanes() == 1) {
      if (count != 0) f(size_t{0}, count);
      return;
    }
    const size_t share = round_up(ceil_div(count, static_cast<size_t>(num_lanes())), kChunkAlign);
    const size_t first = min_size(count, share * static_cast<size_t>(lane_));
    const size_t n = min_size(share, count - first);
    if (n != 0) f(first, n);
  }

  std::byte* outbox(Edge edge, uint64_t seq) const { return slot(edge.flow, rank(), edge.peer, seq); }
  std::byte* inbox(Edge edge, uint64_t seq) const { return slot(edge.flow, edge.peer, rank(), seq); }

  std::byte* acquire(Edge edge, uint64_t seq) {
    if (!wait_credit(edge, seq)) return nullptr;
    failpoint("holding_credit");
    return outbox(edge, seq);
  }
  void publish(Edge edge, uint64_t seq) {
    if (!mutated(Mutation::kRingNoLaneSync)) sync();
    if (lane_ == 0) signal(edge.peer, edge.flow, seq);
  }
  std::byte* arrive(Edge edge, uint64_t seq) {
    if (!wait(edge.peer, edge.flow, seq)) return nullptr;
    failpoint("holding_slot");
    return inbox(edge, seq);
  }
  /// Whether arrive() would return at once. One lane. seq_cst: see exec/message_bell.h.
  bool has_arrived(Edge edge, uint64_t seq) const {
    Flag& flag = context_.flag(rank(), channel_, edge.flow, edge.peer);
    return std::atomic_ref<uint64_t>(flag.value).load(std::memory_order_seq_cst) > seq;
  }
  /// The same of acquire().
  bool may_acquire(Edge edge, uint64_t seq) const {
    const auto depth = static_cast<uint64_t>(context_.layout.placement.depth);
    return !needs_credit(edge.flow) || seq < depth || has_arrived({edge.peer, credit_flow(edge.flow)}, seq - depth);
  }
  /// Whether the communicator is broken, or op's only_peer is gone, without any wait; true fails the operation.
  bool is_stopped() {
    std::atomic_ref<uint32_t> attention(context_.control(rank()).abort.attention);
    return attention.load(std::memory_order_acquire) != 0 && must_stop(0);
  }
  void release(Edge edge, uint64_t seq) {
    sync();
    if (lane_ == 0) give_credit(edge, seq);
  }
  void publish_and_release(Edge out, uint64_t out_seq, Edge in, uint64_t in_seq) {
    if (!mutated(Mutation::kRingNoLaneSync)) sync();
    if (lane_ != 0) return;
    signal(out.peer, out.flow, out_seq);
    give_credit(in, in_seq);
  }
  void signal_all(Flow flow, uint64_t seq) {
    if (!skips_lane_sync(flow)) sync();
    for (int peer = lane_; peer < world_size(); peer += num_lanes()) {
      if (peer != rank()) signal(peer, flow, seq);
    }
  }
  bool wait_all(Flow flow, uint64_t seq) {
    bool failed = false;
    for (int peer = lane_; op_.policy.shared && peer < world_size() && !failed; peer += num_lanes()) {
      if (peer != rank() && waits_first_for(peer)) failed = !wait_flag(flow, seq, peer);
    }
    for (int peer = lane_; peer < world_size() && !failed; peer += num_lanes()) {
      if (peer != rank()) failed = !wait_flag(flow, seq, peer);
    }
    return !any(failed);
  }

  /// What `rank` says about its arrays in this operation; once its "ready" has come.
  OpRecord lent(int rank) const { return load_record(context_.control(rank).records[op_.seq % 2]); }
  /// All ranks look at the same records, so that they agree.
  bool all_lent() {
    const uint32_t region = lent(rank()).in_region;
    bool all = region != 0;
    for (int peer = 0; peer < world_size() && all && !mutated(Mutation::kDirectOwnRecordOnly); ++peer) {
      all = lent(peer).in_region == region;
    }
    if (all && channel_ == 0 && lane_ == 0) op_.all_lent = true;
    return all;
  }

  uint64_t load_counter(Counter counter, int peer = 0) {
    return context_.counters[static_cast<size_t>(channel_)].at(counter, peer);
  }
  void store_counter(Counter counter, uint64_t value, int peer = 0) {
    sync();  // every lane has read the old value
    if (lane_ == 0) context_.counters[static_cast<size_t>(channel_)].at(counter, peer) = value;
  }

  // ---- Packets: lines of data that carry their own flags. No slot, no second cache miss. ----

  /// Bytes of one message.
  size_t packet_capacity() const { return scratch_.packet_bytes; }
  /// This lane's lines of a message of `nbytes`; an empty message is one empty line.
  PacketShare packet_share(size_t nbytes) const {
    const size_t num_lines = nbytes == 0 ? 1 : ceil_div(nbytes, kPacketPayloadBytes);
    PacketShare share;
    for_each_pack(num_lines, [&](size_t first, size_t n) {
      share.first_line = first;
      share.num_lines = n;
      share.offset = first * kPacketPayloadBytes;
      share.nbytes = min_size(n * kPacketPayloadBytes, nbytes - share.offset);
    });
    return share;
  }
  /// Scratch for packet_capacity() bytes of `rank`; world_size: of this rank before it sends.
  std::byte* packet_buffer(int rank) const {
    return scratch_.packets.data() + static_cast<size_t>(rank) * scratch_.packet_bytes;
  }
  /// Sends share.nbytes at `data` to every peer. A message's lines are free when all lanes have taken the message
  /// before it: every peer's message seq - 1 came after it had taken seq - 2, whose lines these are.
  void put_packets(uint64_t seq, const PacketShare& share, const std::byte* data) {
    for (int i = 1; i < world_size() && share.num_lines != 0; ++i) {
      put_lines(rank() + i < world_size() ? rank() + i : rank() + i - world_size(), seq, share, data);
    }
  }
  /// Waits for this lane's lines of `peer`'s message; share.nbytes, or nullptr. Valid until this lane's next take.
  const std::byte* take_packets(int peer, uint64_t seq, const PacketShare& share) {
    const PacketLine* const lines = context_.packets(rank(), channel_, packet_parity(seq), peer) + share.first_line;
    if (share.num_lines == 1) return wait_line(lines[0], seq, peer) ? payload(lines[0]) : nullptr;
    std::byte* const to = packet_buffer(peer);
    for (size_t i = 0; i < share.num_lines; ++i) {
      if (!wait_line(lines[i], seq, peer)) return nullptr;
      const size_t done = i * kPacketPayloadBytes;
      if (share.nbytes - done >= kPacketPayloadBytes) {
        copy_full_payload(to + done, lines[i].payload);
      } else {
        std::memcpy(to + done, lines[i].payload, share.nbytes - done);
      }
    }
    return to;
  }

  /// Where ranks share CPUs, such a peer is waited for first: it cannot come before this rank gives up the core, and
  /// the others come in the meantime.
  bool waits_first_for(int peer) const { return op_.policy.shared && shares_cpu_with(context_, peer); }

  /// world_size pointers each; scratch for Kernels.
  const void** input_pointers() { return const_cast<const void**>(scratch_.pointers.data()); }
  void** output_pointers() { return scratch_.pointers.data() + world_size(); }

 private:
  static bool skips_lane_sync(Flow flow) {
    return (flow == Flow::kScatter && mutated(Mutation::kTwoShotNoLaneSync)) ||
           (flow == Flow::kGather && mutated(Mutation::kTwoShotNoGatherSync)) ||
           (flow == Flow::kExchange && mutated(Mutation::kExchangeNoLaneSync)) ||
           (flow == Flow::kDirect && mutated(Mutation::kDirectNoLaneSync));
  }

  std::byte* slot(Flow flow, int from, int to, uint64_t seq) const {
    if (mutated(Mutation::kSingleSlot)) seq = 0;
    if (flow == Flow::kExchange && mutated(Mutation::kSingleExchangeSlot)) {
      seq -= seq % static_cast<uint64_t>(context_.layout.placement.depth);
    }
    const SlotRef ref = context_.layout.placement.slot(flow, from, to, seq);
    return context_.windows->at(ref.window) + context_.layout.slot_offset(channel_, ref);
  }

  /// Message `seq` of this edge is in its slot.
  void signal(int peer, Flow flow, uint64_t seq) {
#if defined(DCOMM_TESTING)
    test_jitter();
#endif
    failpoint("before_signal");
    Flag& flag = context_.flag(peer, channel_, flow, rank());
    std::atomic_ref<uint64_t>(flag.hash[flag_hash_index(flow, seq, world_size())])
        .store(op_.hash, std::memory_order_relaxed);
    std::atomic_ref<uint64_t> value(flag.value);
    // Releases the slot; and an exchange, not a store, because the look for sleepers must not overtake it (sleep_on).
    value.exchange(seq + 1, mutated(Mutation::kRelaxedPublish) ? std::memory_order_relaxed : std::memory_order_seq_cst);
    failpoint("before_wake");
    if (DCOMM_UNLIKELY(std::atomic_ref<uint32_t>(flag.sleepers).load(std::memory_order_seq_cst) != 0)) wake(flag);
    failpoint("after_signal");
  }

  bool needs_credit(Flow flow) const { return context_.layout.placement.needs_credit(flow); }

  bool wait_credit(Edge edge, uint64_t seq) {
    const auto depth = static_cast<uint64_t>(context_.layout.placement.depth);
    if (!needs_credit(edge.flow) || seq < depth || mutated(Mutation::kNoCreditWait)) return true;
    const uint64_t freed = seq - depth - (mutated(Mutation::kCreditOffByOne) && seq > depth ? 1 : 0);
    return wait(edge.peer, credit_flow(edge.flow), freed);
  }
  void give_credit(Edge edge, uint64_t seq) {
    if (needs_credit(edge.flow)) signal(edge.peer, credit_flow(edge.flow), seq);
  }

  /// All lanes; lane 0 polls.
  bool wait(int peer, Flow flow, uint64_t seq) {
    if (num_lanes() == 1) return wait_flag(flow, seq, peer);
    const bool failed = lane_ == 0 && !wait_flag(flow, seq, peer);
    return !any(failed);
  }

  bool wait_flag(Flow flow, uint64_t seq, int peer) {
    Flag& flag = context_.flag(rank(), channel_, flow, peer);
    const uint64_t target = mutated(Mutation::kWaitOldEpoch) ? seq : seq + 1;
    if (std::atomic_ref<uint64_t>(flag.value).load(arrive_order()) < target) {
      if (!wait_slow({&flag.value, &flag, target, peer})) return false;
    }
    if (is_credit(flow)) return true;  // given in an earlier operation, as a rule
    const uint64_t hash =
        std::atomic_ref<uint64_t>(flag.hash[flag_hash_index(flow, seq, world_size())]).load(std::memory_order_relaxed);
    if (DCOMM_LIKELY(hash == op_.hash || mutated(Mutation::kWaitOldEpoch))) return true;
    return fail(ErrorCode::kMismatch, peer, AbortDetail::kNone, rank(), 0);
  }

  static std::memory_order arrive_order() {
    return mutated(Mutation::kRelaxedArrive) ? std::memory_order_relaxed : std::memory_order_acquire;
  }

  static int packet_parity(uint64_t seq) {
    return mutated(Mutation::kSinglePacketBuffer) ? 0 : static_cast<int>(seq % 2);
  }
  static const std::byte* payload(const PacketLine& line) { return reinterpret_cast<const std::byte*>(line.payload); }

  /// Of constant size, so that it becomes a few loads and stores; those ThreadSanitizer does not see (gcc 12), so that
  /// under it this is a call.
  static void copy_full_payload(void* to, const void* from) {
    size_t nbytes = kPacketPayloadBytes;
#if defined(__SANITIZE_THREAD__)
    asm volatile("" : "+r"(nbytes));
#endif
    std::memcpy(to, from, nbytes);
  }

  void put_lines(int peer, uint64_t seq, const PacketShare& share, const std::byte* data) {
#if defined(DCOMM_TESTING)
    test_jitter();
#endif
    PacketLine* const lines = context_.packets(peer, channel_, packet_parity(seq), rank()) + share.first_line;
    for (size_t i = 0; i < share.num_lines; ++i) {
      const size_t done = i * kPacketPayloadBytes;
      PacketLine& line = lines[i];
      if (share.nbytes - done >= kPacketPayloadBytes) {
        copy_full_payload(line.payload, data + done);
      } else if (share.nbytes != 0) {
        std::memcpy(line.payload, data + done, share.nbytes - done);
      }
      std::atomic_ref<uint64_t>(line.hash).store(op_.hash, std::memory_order_relaxed);
      std::atomic_ref<uint64_t> tag(line.tag);
      if (i + 1 < share.num_lines) {
        tag.store(seq + 1, std::memory_order_release);
        failpoint("packet_half_sent");
      } else {
        failpoint("before_packet");
        tag.exchange(seq + 1, std::memory_order_seq_cst);  // as in signal(): the look for sleepers comes after it
      }
    }
    Flag& bell = context_.flag(peer, channel_, Flow::kPacket, rank());
    if (DCOMM_UNLIKELY(std::atomic_ref<uint32_t>(bell.sleepers).load(std::memory_order_seq_cst) != 0)) {
      std::atomic_ref<uint64_t>(bell.value).fetch_add(1, std::memory_order_seq_cst);
      wake(bell);
    }
  }

  bool wait_line(const PacketLine& line, uint64_t seq, int peer) {
    auto& words = const_cast<PacketLine&>(line);
    const uint64_t target = seq + 1 - (mutated(Mutation::kStalePacketTag) && seq >= 2 ? 2 : 0);
    if (std::atomic_ref<uint64_t>(words.tag).load(arrive_order()) < target) {
      if (!wait_slow({&words.tag, &context_.flag(rank(), channel_, Flow::kPacket, peer), target, peer})) return false;
    }
    const uint64_t hash = std::atomic_ref<uint64_t>(words.hash).load(std::memory_order_relaxed);
    if (DCOMM_LIKELY(hash == op_.hash || mutated(Mutation::kStalePacketTag))) return true;
    return fail(ErrorCode::kMismatch, peer, AbortDetail::kNone, rank(), 0);
  }

  /// What a wait waits for: *value >= target. bell: on whose value's low word it sleeps, and who counts as asleep.
  struct Awaited {
    uint64_t* value;
    Flag* bell;
    uint64_t target;
    int peer;
  };
  bool wait_slow(const Awaited& awaited);
  bool wait_longer(const Awaited& awaited);
  static bool sleep_on(const Awaited& awaited, int64_t max_ns);
  bool must_stop(int64_t waited_ns);
  bool headers_differ(int64_t waited_ns);
  bool fail(ErrorCode code, int culprit, AbortDetail detail, int reporter, int64_t waited_ns);
  static void wake(Flag& flag);

  HostContext& context_;
  HostOp& op_;
  LaneBarrier& lanes_;
  const int channel_;
  const int lane_;
  LaneScratch& scratch_;
};

}  // namespace dcomm
