// The recording executor: runs an algorithm's text for one rank and notes what it does. Floor: exec.
//
// Nothing is moved and nothing is waited for. The record (a Program) is what the schedule verifier replays
// (tests/cc/verifier.h) and what a simulator or a picture of the schedule would read. Slot pointers are made-up
// addresses that name a SlotRef; they are compared and passed back, never dereferenced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "protocol/envelope.h"
#include "protocol/exec.h"
#include "schedule/partition.h"
#include "schedule/placement.h"

namespace dcomm {

enum class EventKind : uint8_t {
  kAcquire,           // `to` may be written (waits for message seq - depth's credit where the flow has credits)
  kPublish,           // `to` has been written; range: the elements in the message
  kArrive,            // waits for the peer's publish; `from` may be read
  kRelease,           // `from` has been read (returns the credit where the flow has credits)
  kEncode,            // to <- in[range]
  kDecode,            // out[range] <- from
  kAccumulate,        // to <- from + in[range]
  kFinish,            // to, out[range] <- from + in[range]
  kForward,           // to, out[range] <- from
  kReduceCanonical,   // out[range], every `to` <- canonical sum of every `from` and in[range]; see operands
  kCopy,              // to <- from
  kKeep,              // out <- in[range]
  kReduceEverywhere,  // out[range] of every rank <- canonical sum of every rank's in[range]
  kReduceHere,        // out[range] <- canonical sum of every rank's in[range]
  kFetch,             // out <- the peer's in[range]
  kCombine,           // every `to`[, out] <- (in[range] + first `from`) + second `from`; see operands
  kPutEnvelope,       // to <- a message's envelope
  kGetEnvelope,       // envelope <- from
};

constexpr const char* event_name(EventKind kind) {
  switch (kind) {
    case EventKind::kAcquire:
      return "acquire";
    case EventKind::kPublish:
      return "publish";
    case EventKind::kArrive:
      return "arrive";
    case EventKind::kRelease:
      return "release";
    case EventKind::kEncode:
      return "encode";
    case EventKind::kDecode:
      return "decode";
    case EventKind::kAccumulate:
      return "accumulate";
    case EventKind::kFinish:
      return "finish";
    case EventKind::kForward:
      return "forward";
    case EventKind::kReduceCanonical:
      return "reduce_canonical";
    case EventKind::kCopy:
      return "copy";
    case EventKind::kKeep:
      return "keep";
    case EventKind::kReduceEverywhere:
      return "reduce_everywhere";
    case EventKind::kReduceHere:
      return "reduce_here";
    case EventKind::kFetch:
      return "fetch";
    case EventKind::kCombine:
      return "combine";
    case EventKind::kPutEnvelope:
      return "put_envelope";
    case EventKind::kGetEnvelope:
      return "get_envelope";
  }
  return "unknown";
}

/// One step. Which fields mean something depends on the kind: flow, peer and seq for the first four, peer for kFetch.
struct Event {
  EventKind kind = EventKind::kAcquire;
  Flow flow = Flow::kScatter;
  int peer = -1;
  uint64_t seq = 0;
  SlotRef to;                // written
  SlotRef from;              // read
  Range range;               // elements of the user's array
  size_t out_offset = 0;     // where the range begins in `out`, for what is stored there
  size_t first_operand = 0;  // kReduceCanonical, kCombine: the first of its operands
  int num_from = 0;          // kCombine
  int num_to = 0;            // kCombine
  bool is_stored = true;     // kCombine: in `out` as well
};

/// One rank's steps on one channel, in order. Ranks wait for each other only where a kArrive, or a kAcquire of a
/// flow with credits, says so; signal_all and wait_all are noted edge by edge.
struct Program {
  int rank = 0;
  int world_size = 1;
  int channel = 0;
  std::vector<Event> events;
  /// For each kReduceCanonical: world_size slots read, then world_size written, by rank; the own ones and those of no
  /// output unused (window -1). For each kCombine: num_from slots read, then num_to written.
  std::vector<SlotRef> operands;
};

/// The made-up slot; only pointers to it exist.
struct RecordedSlot;

class RecordExec {
 public:
  RecordExec(const Placement& placement, int rank, int channel)
      : placement_(placement),
        counters_(kNumGroupCounters + kNumPeerCounters * static_cast<size_t>(placement.world_size)) {
    start_program(rank, channel);
  }

  /// What was noted since the last call. Counters go on: the next operation continues on the same slots.
  Program take() {
    Program done = std::move(program_);
    start_program(done.rank, done.channel);
    return done;
  }

  int rank() const { return program_.rank; }
  int world_size() const { return program_.world_size; }
  int channel() const { return program_.channel; }
  int lane() const { return 0; }
  int num_lanes() const { return 1; }
  bool any(bool mine) const { return mine; }
  void sync() const {}

  template <class F>
  void for_each_pack(size_t count, F&& f) const {
    if (count != 0) f(size_t{0}, count);
  }

  RecordedSlot* outbox(Edge edge, uint64_t seq) const { return pointer(outbox_ref(edge, seq)); }
  RecordedSlot* inbox(Edge edge, uint64_t seq) const { return pointer(inbox_ref(edge, seq)); }

  RecordedSlot* acquire(Edge edge, uint64_t seq) {
    Event& event = note(EventKind::kAcquire, edge, seq);
    event.to = outbox_ref(edge, seq);
    return pointer(event.to);
  }
  void publish(Edge edge, uint64_t seq) {
    Event& event = note(EventKind::kPublish, edge, seq);
    if (!has_slots(edge.flow)) return;
    event.to = outbox_ref(edge, seq);
    event.range = filled_[key(event.to)];
  }
  RecordedSlot* arrive(Edge edge, uint64_t seq) {
    Event& event = note(EventKind::kArrive, edge, seq);
    if (has_slots(edge.flow)) event.from = inbox_ref(edge, seq);
    return pointer(event.from);
  }
  void release(Edge edge, uint64_t seq) { note(EventKind::kRelease, edge, seq).from = inbox_ref(edge, seq); }
  void publish_and_release(Edge out, uint64_t out_seq, Edge in, uint64_t in_seq) {
    publish(out, out_seq);
    release(in, in_seq);
  }
  void signal_all(Flow flow, uint64_t seq) {
    for (int peer = 0; peer < world_size(); ++peer) {
      if (peer != rank()) publish(Edge{peer, flow}, seq);
    }
  }
  bool wait_all(Flow flow, uint64_t seq) {
    for (int peer = 0; peer < world_size(); ++peer) {
      if (peer != rank()) arrive(Edge{peer, flow}, seq);
    }
    return true;
  }

  uint64_t load_counter(Counter counter, int peer = 0) const { return counters_[counter_index(counter, peer)]; }
  void store_counter(Counter counter, uint64_t value, int peer = 0) { counters_[counter_index(counter, peer)] = value; }
  size_t packet_capacity() const { return 192; }
  /// What the operations from here on find out about the ranks' arrays.
  void set_all_lent(bool all_lent) { all_lent_ = all_lent; }
  bool all_lent() const { return all_lent_; }

  /// For RecordKernels. Null where a kernel has no such slot.
  Event& note_data(EventKind kind, Range range, RecordedSlot* to, const RecordedSlot* from) {
    Event event;
    event.kind = kind;
    event.range = range;
    if (to != nullptr) {
      event.to = ref(to);
      filled_[key(event.to)] = range;
    }
    if (from != nullptr) event.from = ref(from);
    program_.events.push_back(event);
    return program_.events.back();
  }
  /// The next of a kReduceCanonical's slots: all that are read first, then all that are written.
  void note_operand(const RecordedSlot* slot, bool is_written, Range range) {
    program_.operands.push_back(slot == nullptr ? SlotRef{-1, 0} : ref(slot));
    if (slot != nullptr && is_written) filled_[key(program_.operands.back())] = range;
  }
  size_t num_operands() const { return program_.operands.size(); }

 private:
  size_t counter_index(Counter counter, int peer) const {
    const auto number = static_cast<size_t>(counter);
    if (number < kNumGroupCounters) return number;
    return kNumGroupCounters + (number - kNumGroupCounters) * static_cast<size_t>(placement_.world_size) +
           static_cast<size_t>(peer);
  }

  // A slot's name: never 0, so that no pointer made of it is null.
  static uintptr_t key(const SlotRef& slot) {
    return (static_cast<uintptr_t>(slot.window) + 1) << 32 | static_cast<uintptr_t>(slot.pool) << 28 |
           static_cast<uintptr_t>(slot.index);
  }
  static RecordedSlot* pointer(const SlotRef& slot) { return reinterpret_cast<RecordedSlot*>(key(slot)); }
  static SlotRef ref(const RecordedSlot* slot) {
    const auto name = reinterpret_cast<uintptr_t>(slot);
    return {static_cast<int>(name >> 32) - 1, static_cast<int>(name & 0xfffffffu),
            static_cast<SlotPool>(name >> 28 & 0xfu)};
  }

  SlotRef outbox_ref(Edge edge, uint64_t seq) const { return placement_.slot(edge.flow, rank(), edge.peer, seq); }
  SlotRef inbox_ref(Edge edge, uint64_t seq) const { return placement_.slot(edge.flow, edge.peer, rank(), seq); }

  Event& note(EventKind kind, Edge edge, uint64_t seq) {
    Event event;
    event.kind = kind;
    event.flow = edge.flow;
    event.peer = edge.peer;
    event.seq = seq;
    program_.events.push_back(event);
    return program_.events.back();
  }

  void start_program(int rank, int channel) {
    program_ = Program{};
    program_.rank = rank;
    program_.world_size = placement_.world_size;
    program_.channel = channel;
  }

  const Placement placement_;
  std::vector<uint64_t> counters_;
  bool all_lent_ = true;
  std::unordered_map<uintptr_t, Range> filled_;  // what this rank wrote last, by slot
  Program program_;
};

/// Kernels that note instead of computing; see protocol/exec.h for what each means.
struct RecordKernels {
  size_t out_shift = 0;

  RecordKernels shifted_out(size_t offset) const { return {out_shift + offset}; }

  void encode(RecordExec& exec, RecordedSlot* slot, Range range) const {
    exec.note_data(EventKind::kEncode, range, slot, nullptr);
  }
  void decode(RecordExec& exec, Range range, const RecordedSlot* slot) const {
    store(exec.note_data(EventKind::kDecode, range, nullptr, slot));
  }
  void accumulate(RecordExec& exec, RecordedSlot* to, const RecordedSlot* from, Range range) const {
    exec.note_data(EventKind::kAccumulate, range, to, from);
  }
  void finish(RecordExec& exec, RecordedSlot* to, const RecordedSlot* from, Range range) const {
    store(exec.note_data(EventKind::kFinish, range, to, from));
  }
  void forward(RecordExec& exec, RecordedSlot* to, const RecordedSlot* from, Range range) const {
    store(exec.note_data(EventKind::kForward, range, to, from));
  }
  void copy(RecordExec& exec, RecordedSlot* to, const RecordedSlot* from, Range range) const {
    exec.note_data(EventKind::kCopy, range, to, from);
  }
  void keep(RecordExec& exec, size_t to_offset, Range range) const {
    exec.note_data(EventKind::kKeep, range, nullptr, nullptr).out_offset = to_offset - out_shift;
  }
  template <class From, class To>
  void reduce_canonical(RecordExec& exec, Range range, From&& from, To&& to) const {
    Event& event = exec.note_data(EventKind::kReduceCanonical, range, nullptr, nullptr);
    store(event);
    event.first_operand = exec.num_operands();
    for (int rank = 0; rank < exec.world_size(); ++rank) {
      exec.note_operand(rank == exec.rank() ? nullptr : from(rank), false, range);
    }
    for (int rank = 0; rank < exec.world_size(); ++rank) {
      exec.note_operand(rank == exec.rank() ? nullptr : slot_of(to(rank)), true, range);
    }
  }
  void reduce_everywhere(RecordExec& exec, Range range) const {
    store(exec.note_data(EventKind::kReduceEverywhere, range, nullptr, nullptr));
  }
  void reduce_here(RecordExec& exec, Range range) const {
    store(exec.note_data(EventKind::kReduceHere, range, nullptr, nullptr));
  }
  void fetch(RecordExec& exec, size_t to_offset, int peer, Range range) const {
    Event& event = exec.note_data(EventKind::kFetch, range, nullptr, nullptr);
    event.out_offset = to_offset - out_shift;
    event.peer = peer;
  }
  template <class From, class To>
  void combine(RecordExec& exec, Range range, From&& from, int num_from, To&& to, int num_to, bool is_final) const {
    Event& event = exec.note_data(EventKind::kCombine, range, nullptr, nullptr);
    store(event);
    event.first_operand = exec.num_operands();
    event.num_from = num_from;
    event.num_to = num_to;
    event.is_stored = is_final;
    for (int i = 0; i < num_from; ++i) exec.note_operand(from(i), false, range);
    for (int i = 0; i < num_to; ++i) exec.note_operand(to(i), true, range);
  }
  void put_packets(RecordExec& exec, uint64_t seq, Range range) const {
    for (int i = 1; i < exec.world_size(); ++i) {
      const Edge edge{(exec.rank() + i) % exec.world_size(), Flow::kPacket};
      encode(exec, exec.outbox(edge, seq), range);
      exec.publish(edge, seq);
    }
  }
  bool reduce_packets(RecordExec& exec, uint64_t seq, Range range) const {
    if (!exec.wait_all(Flow::kPacket, seq)) return false;
    reduce_canonical(exec, range, [&](int peer) { return exec.inbox(Edge{peer, Flow::kPacket}, seq); }, NoOutputs{});
    return true;
  }

  void put_envelope(RecordExec& exec, RecordedSlot* slot, const Envelope&) const {
    exec.note_data(EventKind::kPutEnvelope, {}, slot, nullptr);
  }
  /// What it will say is not known here: the caller goes on with the plan of the message that it expects.
  void get_envelope(RecordExec& exec, Envelope&, const RecordedSlot* slot) const {
    exec.note_data(EventKind::kGetEnvelope, {}, nullptr, slot);
  }

 private:
  void store(Event& event) const { event.out_offset = event.range.offset - out_shift; }
  static RecordedSlot* slot_of(RecordedSlot* slot) { return slot; }
  static RecordedSlot* slot_of(std::byte*) { return nullptr; }  // NoOutputs
};

}  // namespace dcomm
