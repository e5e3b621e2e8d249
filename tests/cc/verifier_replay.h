// One thread plays all ranks: replays the recorded programs of one channel and looks for trouble.
//
// Slots hold symbols: "the sum ((0+1)+(2+3)) of elements [a, b) of the ranks' inputs of operation k". Every access
// carries a vector clock that advances with messages only. A message that is waited for passes on what its sender knew
// when it sent THAT message, though a real flag may show a later one: so two accesses count as ordered only if every
// possible timing orders them, and one replay speaks for all timings. Replays in several orders still differ in
// how far ranks run ahead of each other, which the fingerprints depend on.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "exec/record_exec.h"
#include "protocol/control.h"

namespace dcomm::checks {

/// Sums over ranks as interned trees: equal expressions have equal numbers.
class Expressions {
 public:
  int input(int rank) { return intern(-1, rank); }
  int add(int a, int b) { return intern(a, b); }

  /// DECISIONS.md 1, literally: [lo, hi) is split at lo + the largest power of two below its length.
  int tree(const std::vector<int>& terms, size_t lo, size_t hi) {
    if (hi - lo == 1) return terms[lo];
    size_t power = 1;
    while (power * 2 < hi - lo) power *= 2;
    const int left = tree(terms, lo, lo + power);
    return add(left, tree(terms, lo + power, hi));
  }

  std::string text(int expression) const {
    const auto [a, b] = nodes_[static_cast<size_t>(expression)];
    return a < 0 ? std::to_string(b) : "(" + text(a) + "+" + text(b) + ")";
  }

 private:
  int intern(int a, int b) {
    const auto [at, is_new] = index_.try_emplace({a, b}, static_cast<int>(nodes_.size()));
    if (is_new) nodes_.emplace_back(a, b);
    return at->second;
  }
  std::map<std::pair<int, int>, int> index_;
  std::vector<std::pair<int, int>> nodes_;
};

/// Consecutive elements: a sum over ranks, and where in their inputs the first one lies.
struct Value {
  int expression = -1;
  size_t offset = 0;
};

/// A part of an operation's result as one rank stored it.
struct Output {
  Range range;  // of the result
  Value value;
};

/// Elements that fit a slot, by SlotPool.
using SlotCounts = std::array<size_t, kNumSlotPools>;

/// Of one operation.
struct OperationTrace {
  std::vector<std::vector<Output>> outputs;  // by rank
  std::vector<size_t> elements_sent;         // by rank
  std::vector<size_t> elements_fetched;      // by rank: of others' arrays, where these lie
  int steps = 0;                             // messages in the longest chain, credits not counted
};

class Replay {
 public:
  /// programs[operation][rank], all of one channel; they outlive the Replay.
  Replay(const Placement& placement, const SlotCounts& slot_counts, Expressions& expressions,
         const std::vector<std::vector<Program>>& programs, std::vector<OperationTrace>& traces)
      : placement_(placement),
        n_(placement.world_size),
        slot_counts_(slot_counts),
        expressions_(expressions),
        programs_(programs),
        traces_(traces),
        ranks_(static_cast<size_t>(n_)),
        clocks_(static_cast<size_t>(n_ * n_)),
        edges_(static_cast<size_t>(n_ * n_ * kNumFlows)),
        slots_(static_cast<size_t>(n_ * slots_before(placement, kNumSlotPools))),
        loans_(static_cast<size_t>(n_)) {
    for (int rank = 0; rank < n_; ++rank) clock(rank)[rank] = 1;
  }

  enum class Step { kMoved, kBlocked, kDone };

  /// Lets `rank` do its next event, if it need not wait for it.
  Step step(int rank) {
    RankState& state = ranks_[static_cast<size_t>(rank)];
    while (state.operation < programs_.size() && state.next == program(rank).events.size()) {
      take_back(rank);
      OperationTrace& trace = traces_[state.operation++];
      trace.steps = std::max(trace.steps, state.level);
      state.next = 0;
      state.level = 0;
    }
    if (state.operation == programs_.size()) return Step::kDone;
    lend(rank);
    const Event& event = program(rank).events[state.next];
    if (!execute(rank, event)) return Step::kBlocked;
    ++state.next;
    return Step::kMoved;
  }

  int world_size() const { return n_; }
  /// The first thing found wrong; empty so far.
  const std::string& report() const { return report_; }
  bool ok() const { return report_.empty(); }

  /// Nobody can move: says who waits for what.
  void report_deadlock() {
    std::ostringstream text;
    text << "deadlock:";
    for (int rank = 0; rank < n_; ++rank) {
      const RankState& state = ranks_[static_cast<size_t>(rank)];
      if (state.operation < programs_.size()) text << " [" << where(rank) << ']';
    }
    fail(text.str());
  }

  /// At the end: every message was waited for.
  void check_edges() {
    for (size_t i = 0; i < edges_.size(); ++i) {
      const auto flow = static_cast<Flow>(i / static_cast<size_t>(n_) % kNumFlows);
      if (is_credit(flow) || edges_[i].published == edges_[i].taken) continue;
      fail("a message that nobody waits for, flow " + std::to_string(static_cast<int>(flow)));
    }
  }

 private:
  struct RankState {
    size_t operation = 0;
    size_t next = 0;    // event
    int level = 0;      // longest chain of messages so far in this operation
    int snapshot = -1;  // of the clock, shared by publishes without an event in between
  };
  struct Pending {
    int snapshot;
    int level;
  };
  struct EdgeState {
    uint64_t published = 0;
    uint64_t taken = 0;
    std::vector<Pending> pending;  // published and not taken yet, from `head` on
    size_t head = 0;
    std::array<size_t, kHashRing> hashes{};  // stand-ins: the operation
  };
  struct SlotState {
    Value value;
    size_t count = 0;
    size_t operation = 0;
    int writer = -1;
    uint32_t write_clock = 0;
    std::vector<std::pair<int, uint32_t>> reads;  // since the last write: rank, its clock
  };

  /// A rank's own arrays in the operation that it is in: what it did with them before, and what others do now.
  struct Loan {
    size_t operation = SIZE_MAX;
    uint32_t since = 0;                          // the owner's clock when it had last used them
    std::vector<std::pair<int, uint32_t>> uses;  // by others: rank, its clock
  };

  const Program& program(int rank) const {
    return programs_[ranks_[static_cast<size_t>(rank)].operation][static_cast<size_t>(rank)];
  }
  uint32_t* clock(int rank) { return &clocks_[static_cast<size_t>(rank * n_)]; }
  bool knows(int rank, int other, uint32_t time) { return clock(rank)[other] >= time; }
  EdgeState& edge(int to, Flow flow, int from) {
    return edges_[static_cast<size_t>((to * kNumFlows + static_cast<int>(flow)) * n_ + from)];
  }

  std::string where(int rank) const {
    const RankState& state = ranks_[static_cast<size_t>(rank)];
    std::ostringstream text;
    text << "rank " << rank << " operation " << state.operation << " event " << state.next;
    if (state.operation < programs_.size() && state.next < program(rank).events.size()) {
      const Event& event = program(rank).events[state.next];
      text << ' ' << event_name(event.kind) << " flow " << static_cast<int>(event.flow) << " peer " << event.peer
           << " seq " << event.seq;
    }
    return text.str();
  }

  void fail(const std::string& what) {
    if (report_.empty()) report_ = what;
  }
  void fail(int rank, const std::string& what) { fail(what + " at " + where(rank)); }

  // ---- Messages ----

  /// Packets carry their fingerprint themselves: as many as there are buffers.
  size_t hash_index(Flow flow, uint64_t seq) const {
    return flow == Flow::kPacket ? seq % 2 : static_cast<size_t>(flag_hash_index(flow, seq, n_));
  }

  void publish(int rank, Flow flow, int peer, uint64_t seq) {
    RankState& state = ranks_[static_cast<size_t>(rank)];
    EdgeState& to = edge(peer, flow, rank);
    if (to.published != seq) return fail(rank, "published out of turn, expected " + std::to_string(to.published));
    if (state.snapshot < 0) {
      state.snapshot = new_snapshot(rank);
      ++clock(rank)[rank];  // what the rank does from now on is not in the snapshot
    }
    ++snapshot_uses_[static_cast<size_t>(state.snapshot)];
    to.pending.push_back({state.snapshot, is_credit(flow) ? 0 : state.level + 1});
    to.hashes[hash_index(flow, seq)] = state.operation;
    ++to.published;
  }

  /// False: not there yet.
  bool take(int rank, Flow flow, int peer, uint64_t seq) {
    RankState& state = ranks_[static_cast<size_t>(rank)];
    EdgeState& from = edge(rank, flow, peer);
    if (from.taken != seq) {
      fail(rank, "waits out of turn, expected " + std::to_string(from.taken));
      return true;
    }
    if (from.published <= seq) return false;
    if (!is_credit(flow) && from.hashes[hash_index(flow, seq)] != state.operation) {
      fail(rank, "the fingerprint on the flag is another operation's");
    }
    const Pending message = from.pending[from.head++];
    if (from.head == from.pending.size()) {
      from.pending.clear();
      from.head = 0;
    }
    ++from.taken;
    drop_shared_snapshot(state);
    state.level = std::max(state.level, message.level);
    uint32_t* const mine = clock(rank);
    const uint32_t* const theirs = &snapshots_[static_cast<size_t>(message.snapshot * n_)];
    if (mine[peer] < theirs[peer]) {  // else all of it is known already
      for (int i = 0; i < n_; ++i) mine[i] = std::max(mine[i], theirs[i]);
    }
    unuse_snapshot(message.snapshot);
    return true;
  }

  int new_snapshot(int rank) {
    int snapshot = 0;
    if (free_snapshots_.empty()) {
      snapshot = static_cast<int>(snapshot_uses_.size());
      snapshot_uses_.push_back(0);
      snapshots_.resize(snapshots_.size() + static_cast<size_t>(n_));
    } else {
      snapshot = free_snapshots_.back();
      free_snapshots_.pop_back();
    }
    std::copy(clock(rank), clock(rank) + n_, &snapshots_[static_cast<size_t>(snapshot * n_)]);
    snapshot_uses_[static_cast<size_t>(snapshot)] = 1;
    return snapshot;
  }
  void unuse_snapshot(int snapshot) {
    if (--snapshot_uses_[static_cast<size_t>(snapshot)] == 0) free_snapshots_.push_back(snapshot);
  }
  void drop_shared_snapshot(RankState& state) {
    if (state.snapshot >= 0) unuse_snapshot(state.snapshot);
    state.snapshot = -1;
  }

  // ---- Slots ----

  /// Of a window, in the pools before `pool`.
  static int slots_before(const Placement& placement, int pool) {
    int count = 0;
    for (int before = 0; before < pool; ++before) count += placement.num_slots(static_cast<SlotPool>(before));
    return count;
  }

  SlotState* slot(int rank, const SlotRef& ref, size_t count) {
    if (ref.window < 0 || ref.window >= n_ || ref.index < 0 || ref.index >= placement_.num_slots(ref.pool)) {
      fail(rank, "no such slot");
      return nullptr;
    }
    if (count > slot_counts_[static_cast<size_t>(ref.pool)]) fail(rank, "more than a slot holds");
    const int per_window = slots_before(placement_, kNumSlotPools);
    return &slots_[static_cast<size_t>(ref.window * per_window + slots_before(placement_, static_cast<int>(ref.pool)) +
                                       ref.index)];
  }

  Value read(int rank, const SlotRef& ref, size_t count) {
    SlotState* const from = slot(rank, ref, count);
    if (from == nullptr) return {};
    if (from->writer < 0) {
      fail(rank, "read of a slot that was never written");
      return {};
    }
    if (!knows(rank, from->writer, from->write_clock)) {
      fail(rank, "race: read and rank " + std::to_string(from->writer) + "'s write of a slot");
    }
    if (from->operation != ranks_[static_cast<size_t>(rank)].operation || from->count != count) {
      fail(rank, holds(*from) + ", wanted " + std::to_string(count) + " elements of this one");
    }
    from->reads.emplace_back(rank, clock(rank)[rank]);
    return from->value;
  }

  /// What is combined with elements [range) of the reader's own input must be a sum of those elements.
  int read_terms(int rank, const SlotRef& ref, Range range) {
    const Value value = read(rank, ref, range.count);
    if (ok() && value.offset != range.offset) {
      fail(rank, holds(*slot(rank, ref, 0)) + ", to be combined with elements from " + std::to_string(range.offset));
    }
    return value.expression;
  }

  static std::string holds(const SlotState& slot) {
    return "the slot holds [" + std::to_string(slot.value.offset) + ", +" + std::to_string(slot.count) +
           ") of operation " + std::to_string(slot.operation);
  }

  void write(int rank, const SlotRef& ref, size_t count, Value value) {
    SlotState* const to = slot(rank, ref, count);
    if (to == nullptr) return;
    if (to->writer >= 0 && !knows(rank, to->writer, to->write_clock)) {
      fail(rank, "race: write and rank " + std::to_string(to->writer) + "'s write of a slot");
    }
    for (const auto& [reader, time] : to->reads) {
      if (!knows(rank, reader, time)) {
        fail(rank, "race: write and rank " + std::to_string(reader) + "'s read of a slot");
      }
    }
    to->value = value;
    to->count = count;
    to->operation = ranks_[static_cast<size_t>(rank)].operation;
    to->writer = rank;
    to->write_clock = clock(rank)[rank];
    to->reads.clear();
  }

  void store(int rank, const Event& event, Value value) {
    const size_t operation = ranks_[static_cast<size_t>(rank)].operation;
    traces_[operation].outputs[static_cast<size_t>(rank)].push_back({{event.out_offset, event.range.count}, value});
  }

  // ---- Arrays that others use ----

  void lend(int rank) {
    RankState& state = ranks_[static_cast<size_t>(rank)];
    Loan& loan = loans_[static_cast<size_t>(rank)];
    if (loan.operation == state.operation) return;
    drop_shared_snapshot(state);  // the owner has used them since it published last
    loan = {state.operation, clock(rank)[rank], {}};
  }

  /// When the operation ends its owner may do with the arrays what it likes.
  void take_back(int rank) {
    lend(rank);  // an operation without events
    Loan& loan = loans_[static_cast<size_t>(rank)];
    for (const auto& [user, time] : loan.uses) {
      if (!knows(rank, user, time)) {
        fail("race: rank " + std::to_string(rank) + " ends an operation and rank " + std::to_string(user) +
             "'s use of its arrays");
      }
    }
    loan.operation = SIZE_MAX;
  }

  void use_arrays_of(int owner, int rank) {
    Loan& loan = loans_[static_cast<size_t>(owner)];
    if (loan.operation != ranks_[static_cast<size_t>(rank)].operation || !knows(rank, owner, loan.since)) {
      return fail(rank, "race: use of rank " + std::to_string(owner) + "'s arrays, which it has not lent");
    }
    loan.uses.emplace_back(rank, clock(rank)[rank]);
  }

  /// Every rank's result, from every rank's input.
  void reduce_everywhere(int rank, const Event& event) {
    std::vector<int> terms;
    for (int peer = 0; peer < n_; ++peer) terms.push_back(expressions_.input(peer));
    const Value sum{expressions_.tree(terms, 0, terms.size()), event.range.offset};
    const size_t operation = ranks_[static_cast<size_t>(rank)].operation;
    for (int peer = 0; peer < n_; ++peer) {
      if (peer != rank) use_arrays_of(peer, rank);
      traces_[operation].outputs[static_cast<size_t>(peer)].push_back({{event.out_offset, event.range.count}, sum});
    }
    traces_[operation].elements_sent[static_cast<size_t>(rank)] += event.range.count * static_cast<size_t>(n_ - 1);
  }

  /// This rank's result, from every rank's input.
  void reduce_here(int rank, const Event& event) {
    std::vector<int> terms;
    for (int peer = 0; peer < n_; ++peer) {
      terms.push_back(expressions_.input(peer));
      if (peer != rank) note_fetched(rank, peer, event.range.count);
    }
    store(rank, event, {expressions_.tree(terms, 0, terms.size()), event.range.offset});
  }

  void note_fetched(int rank, int peer, size_t count) {
    use_arrays_of(peer, rank);
    traces_[ranks_[static_cast<size_t>(rank)].operation].elements_fetched[static_cast<size_t>(rank)] += count;
  }

  // ---- Events ----

  bool execute(int rank, const Event& event) {
    switch (event.kind) {
      case EventKind::kAcquire: {
        const auto depth = static_cast<uint64_t>(placement_.depth);
        if (!placement_.needs_credit(event.flow) || event.seq < depth) return true;
        return take(rank, credit_flow(event.flow), event.peer, event.seq - depth);
      }
      case EventKind::kPublish: {
        const size_t operation = ranks_[static_cast<size_t>(rank)].operation;
        traces_[operation].elements_sent[static_cast<size_t>(rank)] += event.range.count;
        publish(rank, event.flow, event.peer, event.seq);
        return true;
      }
      case EventKind::kArrive:
        return take(rank, event.flow, event.peer, event.seq);
      case EventKind::kRelease:
        if (placement_.needs_credit(event.flow)) publish(rank, credit_flow(event.flow), event.peer, event.seq);
        return true;
      default:
        drop_shared_snapshot(ranks_[static_cast<size_t>(rank)]);
        if (event.range.count != 0) move_data(rank, event);
        return true;
    }
  }

  void move_data(int rank, const Event& event) {
    const Range range = event.range;
    const Value own{expressions_.input(rank), range.offset};
    switch (event.kind) {
      case EventKind::kEncode:
        return write(rank, event.to, range.count, own);
      case EventKind::kDecode:
        return store(rank, event, read(rank, event.from, range.count));
      case EventKind::kKeep:
        return store(rank, event, own);
      case EventKind::kCopy:
        return write(rank, event.to, range.count, read(rank, event.from, range.count));
      case EventKind::kAccumulate:
      case EventKind::kFinish: {
        const int sum = expressions_.add(read_terms(rank, event.from, range), own.expression);
        write(rank, event.to, range.count, {sum, range.offset});
        if (event.kind == EventKind::kFinish) store(rank, event, {sum, range.offset});
        return;
      }
      case EventKind::kForward: {
        const Value value = read(rank, event.from, range.count);
        write(rank, event.to, range.count, value);
        return store(rank, event, value);
      }
      case EventKind::kReduceCanonical:
        return reduce_canonical(rank, event);
      case EventKind::kReduceEverywhere:
        return reduce_everywhere(rank, event);
      case EventKind::kReduceHere:
        return reduce_here(rank, event);
      case EventKind::kFetch:
        note_fetched(rank, event.peer, range.count);
        return store(rank, event, {expressions_.input(event.peer), range.offset});
      case EventKind::kCombine:
        return combine(rank, event);
      default:
        return;
    }
  }

  void reduce_canonical(int rank, const Event& event) {
    const SlotRef* const from = &program(rank).operands[event.first_operand];
    std::vector<int> terms(static_cast<size_t>(n_), expressions_.input(rank));
    for (int peer = 0; peer < n_; ++peer) {
      if (peer != rank) terms[static_cast<size_t>(peer)] = read_terms(rank, from[peer], event.range);
    }
    const Value sum{expressions_.tree(terms, 0, terms.size()), event.range.offset};
    for (int peer = 0; peer < n_; ++peer) {
      if (from[n_ + peer].window >= 0) write(rank, from[n_ + peer], event.range.count, sum);
    }
    store(rank, event, sum);
  }

  void combine(int rank, const Event& event) {
    const SlotRef* const from = program(rank).operands.data() + event.first_operand;
    int sum = expressions_.input(rank);
    for (int i = 0; i < event.num_from; ++i) sum = expressions_.add(sum, read_terms(rank, from[i], event.range));
    for (int i = 0; i < event.num_to; ++i) {
      write(rank, from[event.num_from + i], event.range.count, {sum, event.range.offset});
    }
    if (event.is_stored) store(rank, event, {sum, event.range.offset});
  }

  const Placement placement_;
  const int n_;
  const SlotCounts slot_counts_;
  Expressions& expressions_;
  const std::vector<std::vector<Program>>& programs_;
  std::vector<OperationTrace>& traces_;
  std::vector<RankState> ranks_;
  std::vector<uint32_t> clocks_;     // rank x rank
  std::vector<uint32_t> snapshots_;  // pool, world_size clocks each
  std::vector<int> snapshot_uses_;
  std::vector<int> free_snapshots_;
  std::vector<EdgeState> edges_;
  std::vector<SlotState> slots_;
  std::vector<Loan> loans_;  // by owner
  std::string report_;
};

}  // namespace dcomm::checks
