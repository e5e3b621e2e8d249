#include "exec/host_exec.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <climits>
#include <cstdlib>

#include "base/failpoint.h"
#include "exec/wait_pace.h"

namespace dcomm {

namespace {

using RecordWords = std::array<uint64_t, sizeof(OpRecord) / sizeof(uint64_t)>;

constexpr int64_t kHeaderCheckNs = 50'000;  // a matching peer answers within this, or is busy elsewhere

uint32_t* low_word(uint64_t* value) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the futex word is the low half of the flag");
  return reinterpret_cast<uint32_t*>(value);
}

/// Both are of operations, and the first one's was called before the second one's.
bool is_earlier(const AbortReason& reason, const AbortReason& other) {
  if (mutated(Mutation::kFirstReasonStays)) return false;
  return reason.seq != 0 && other.seq != 0 && static_cast<int16_t>(static_cast<uint16_t>(reason.seq - other.seq)) < 0;
}

}  // namespace

void store_record(OpRecord& to, const OpRecord& record) {
  const auto words = std::bit_cast<RecordWords>(record);
  auto* target = reinterpret_cast<uint64_t*>(&to);
  for (size_t i = 0; i < words.size(); ++i) {
    std::atomic_ref<uint64_t>(target[i]).store(words[i], std::memory_order_relaxed);
  }
}

OpRecord load_record(const OpRecord& from) {
  RecordWords words{};
  auto* source = reinterpret_cast<uint64_t*>(const_cast<OpRecord*>(&from));
  for (size_t i = 0; i < words.size(); ++i) {
    words[i] = std::atomic_ref<uint64_t>(source[i]).load(std::memory_order_relaxed);
  }
  return std::bit_cast<OpRecord>(words);
}

void raise_attention(const HostContext& context, int rank) {
  AbortLine& line = context.control(rank).abort;
  std::atomic_ref<uint32_t>(line.attention).store(1, std::memory_order_release);
}

void wake_sleepers(const HostContext& context, int rank) {
  for (int channel = 0; channel < context.layout.num_channels; ++channel) {
    for (int flow = 0; flow < kNumFlows; ++flow) {
      for (int from = 0; from < context.world_size; ++from) {
        Flag& flag = context.flag(rank, channel, static_cast<Flow>(flow), from);
        if (std::atomic_ref<uint32_t>(flag.sleepers).load(std::memory_order_acquire) != 0) {
          syscall(SYS_futex, low_word(&flag.value), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
        }
      }
    }
  }
}

void HostContext::start_after(uint64_t first) {
  Header& header = control(rank).header;
  std::atomic_ref<uint64_t>(header.completed).store(first, std::memory_order_release);
  std::atomic_ref<uint64_t>(header.seq).store(first, std::memory_order_release);
  for (int channel = 0; channel < layout.num_channels; ++channel) {
    counters[static_cast<size_t>(channel)].set_all(first);
    for (const Flow flow : {Flow::kFifo, Flow::kPair, Flow::kMessage}) {  // the slots of all earlier ones are free
      for (int peer = 0; peer < world_size; ++peer) {
        std::atomic_ref<uint64_t>(this->flag(rank, channel, credit_flow(flow), peer).value)
            .store(first, std::memory_order_release);
      }
    }
  }
}

void begin_operation(const HostContext& context, uint64_t seq, uint64_t hash) {
  Header& header = context.control(context.rank).header;
  // Both release: who sees the new hash sees at least the seq before it (headers_differ).
  std::atomic_ref<uint64_t>(header.hashes[seq % kHeaderHashes]).store(hash, std::memory_order_release);
  std::atomic_ref<uint64_t>(header.seq).store(seq, std::memory_order_release);
  std::atomic_ref<uint32_t>(header.cpu).store(static_cast<uint32_t>(sched_getcpu()), std::memory_order_relaxed);
}

void broadcast_abort(const HostContext& context, const AbortReason& reason) {
  for (int rank = 0; rank < context.world_size; ++rank) {
    AbortLine& line = context.control(rank).abort;
    std::atomic_ref<uint64_t> word(line.reason);
    uint64_t known = 0;
    // A rank that was ahead may have passed on the reason as one of its own, later operation, which does not stop those
    // that are still in the earlier one: they would meet a peer that has left, and blame that.
    while (!word.compare_exchange_weak(known, reason.pack(), std::memory_order_acq_rel) &&
           (known == 0 || is_earlier(reason, AbortReason::unpack(known)))) {
    }
    raise_attention(context, rank);
    wake_sleepers(context, rank);
    failpoint("telling_abort");
  }
}

#if defined(DCOMM_TESTING)
void test_jitter() {
  static const bool is_on = [] {
    const char* value = std::getenv("DCOMM_TEST_JITTER");
    return value != nullptr && value[0] == '1';
  }();
  if (!is_on) return;
  thread_local uint64_t state = static_cast<uint64_t>(steady_now_ns());
  state = state * 6364136223846793005ull + 1442695040888963407ull;  // Knuth's MMIX generator
  const uint64_t die = state >> 58;
  if (die < 24) sched_yield();
  if (die == 63) {
    const timespec pause{0, 200'000};
    nanosleep(&pause, nullptr);
  }
}
#endif

bool LaneBarrier::any(bool mine) {
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  std::atomic<int>& votes = votes_[generation & 1];
  if (mine) votes.fetch_add(1, std::memory_order_relaxed);
  auto* const word = reinterpret_cast<uint32_t*>(&generation_);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_lanes_) {
    votes_[(generation + 1) & 1].store(0, std::memory_order_relaxed);
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  } else {
    // Ends when every lane has come; lane 0's own wait has a deadline, and no lane waits anywhere else.
    // It sleeps, for beside busy processes every sched_yield would cost a time slice.
    for (int polls = 0; generation_.load(std::memory_order_acquire) == generation; ++polls) {
      cpu_relax();
      if (polls >= kPollsPerClock) syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, generation, nullptr, nullptr, 0);
    }
  }
  return votes.load(std::memory_order_relaxed) != 0;
}

void HostExec::wake(Flag& flag) { syscall(SYS_futex, low_word(&flag.value), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }

bool HostExec::fail(ErrorCode code, int culprit, AbortDetail detail, int reporter, int64_t waited_ns) {
  int expected = 0;
  if (op_.failing.compare_exchange_strong(expected, 1, std::memory_order_acq_rel)) {
    op_.failure = {code, culprit, reporter, detail, waited_ns};
    op_.failed.store(true, std::memory_order_release);
    raise_attention(context_, rank());  // this rank's other channels
  }
  return false;
}

/// Looks at the abort line and at the peers' exits; true when this operation cannot be finished.
bool HostExec::must_stop(int64_t waited_ns) {
  if (op_.failed.load(std::memory_order_acquire)) return true;
  const uint64_t word =
      std::atomic_ref<uint64_t>(context_.control(rank()).abort.reason).load(std::memory_order_acquire);
  if (word != 0) {
    const AbortReason reason = AbortReason::unpack(word);
    // send and recv have no number: whatever failed elsewhere, their peer will not answer.
    if (op_.only_peer >= 0 || reason.concerns(op_.seq)) {
      fail(reason.code, reason.culprit, static_cast<AbortDetail>(reason.detail), reason.reporter, waited_ns);
      return true;
    }
  }
  int lost = -1;
  AbortDetail how_lost = AbortDetail::kNone;
  for (int peer = 0; peer < world_size() && how_lost != AbortDetail::kDied; ++peer) {
    const AbortDetail how = context_.exits->get(peer);
    if (how == AbortDetail::kNone || (op_.only_peer >= 0 && peer != op_.only_peer)) continue;
    const uint64_t completed =
        std::atomic_ref<uint64_t>(context_.control(peer).header.completed).load(std::memory_order_acquire);
    // It left after its part in this operation.
    if (op_.only_peer < 0 && completed >= op_.seq && !mutated(Mutation::kExitIgnoresCompleted)) continue;
    if (lost >= 0 && how != AbortDetail::kDied) continue;  // who has died may be why others have left
    lost = peer;
    how_lost = how;
  }
  if (lost < 0) return false;
  fail(ErrorCode::kPeerLost, lost, how_lost, rank(), waited_ns);
  return true;
}

/// A peer that disagrees about this operation would otherwise be met as a deadline: it waits on other flags, in this
/// operation or, if it could finish its own idea of it alone (a broadcast's root), in a later one.
bool HostExec::headers_differ(int64_t waited_ns) {
  // While the peer is at most this far ahead, it has not begun to overwrite its fingerprint of our operation.
  constexpr uint64_t kMaxAhead = kHeaderHashes - 2;
  for (int peer = 0; peer < world_size(); ++peer) {
    if (peer == rank()) continue;
    Header& header = context_.control(peer).header;
    std::atomic_ref<uint64_t> begun(header.seq);
    const uint64_t ahead = begun.load(std::memory_order_acquire) - op_.seq;  // huge where it is behind
    if (ahead > kMaxAhead) continue;
    const uint64_t hash =
        std::atomic_ref<uint64_t>(header.hashes[op_.seq % kHeaderHashes]).load(std::memory_order_acquire);
    if (hash == op_.hash) continue;
    if (begun.load(std::memory_order_acquire) - op_.seq > kMaxAhead) continue;  // it moved on in between
    fail(ErrorCode::kMismatch, peer, AbortDetail::kNone, rank(), waited_ns);
    return true;
  }
  return false;
}

/// Sleeps until the flag moves, at most max_ns. The seq_cst pair (sleepers, value) mirrors signal().
bool HostExec::sleep_on(const Awaited& awaited, int64_t max_ns) {
  std::atomic_ref<uint32_t> sleepers(awaited.bell->sleepers);
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  const uint64_t seen = std::atomic_ref<uint64_t>(awaited.bell->value).load(std::memory_order_seq_cst);
  const bool arrived = std::atomic_ref<uint64_t>(*awaited.value).load(std::memory_order_seq_cst) >= awaited.target;
  if (!arrived) {
    failpoint("falling_asleep");
    const timespec slice{max_ns / 1'000'000'000, max_ns % 1'000'000'000};
    syscall(SYS_futex, low_word(&awaited.bell->value), FUTEX_WAIT, static_cast<uint32_t>(seen), &slice, nullptr, 0);
    failpoint("waking_up");
  }
  sleepers.fetch_sub(1, std::memory_order_seq_cst);
  return arrived;
}

bool HostExec::wait_slow(const Awaited& awaited) {
  std::atomic_ref<uint64_t> value(*awaited.value);
  const auto arrived = [&] { return value.load(arrive_order()) >= awaited.target; };
  if (WaitPace::look(context_, op_.policy, awaited.peer, arrived)) return true;
  const int64_t start = steady_now_ns();
  const bool has_arrived = wait_longer(awaited);
  context_.waited_ns[static_cast<size_t>(awaited.peer)].fetch_add(steady_now_ns() - start, std::memory_order_relaxed);
  return has_arrived;
}

bool HostExec::wait_longer(const Awaited& awaited) {
  const int peer = awaited.peer;
  std::atomic_ref<uint64_t> value(*awaited.value);
  std::atomic_ref<uint32_t> attention(context_.control(rank()).abort.attention);
  const auto arrived = [&] { return value.load(arrive_order()) >= awaited.target; };
  const int64_t start = steady_now_ns();
  WaitPace pace(context_, op_.policy, peer, start);
  int64_t next_header_check = kHeaderCheckNs;
  int64_t next_interrupt_check = kInterruptCheckNs;
  bool warned = false;
  bool noted = false;
  for (;;) {
    const int64_t waited = steady_now_ns() - start;
#if defined(DCOMM_TESTING)
    if (test_turn_of_wait) test_turn_of_wait();
#endif
    if (DCOMM_UNLIKELY(attention.load(std::memory_order_acquire) != 0)) {
      if (!mutated(Mutation::kNoLastLook) && arrived()) return true;  // what a leaving peer published before counts
      if (must_stop(waited)) return false;
    }
    if (waited >= next_header_check) {
      if (arrived()) return true;
      if (op_.only_peer < 0 && headers_differ(waited)) return false;
      next_header_check = 2 * waited;
    }
    if (waited >= op_.timeout_ns) {
      if (arrived()) return true;
      return fail(ErrorCode::kTimeout, peer, AbortDetail::kNone, rank(), waited);
    }
    if (waited >= next_interrupt_check) {
      next_interrupt_check = waited + kInterruptCheckNs;
      if (op_.interrupted != nullptr && op_.interrupted(op_.argument)) {
        return fail(ErrorCode::kInterrupted, rank(), AbortDetail::kInterrupted, rank(), waited);
      }
      if (!noted && waited >= op_.note_ns && op_.noted != nullptr) {
        noted = true;
        op_.noted(op_.argument);
      }
      if (!warned && waited >= op_.warn_ns && op_.stalled != nullptr) {
        warned = true;
        op_.stalled(op_.argument, peer, waited);
      }
    }
    const auto sleep = [&] { sleep_on(awaited, std::min(kMaxSleepNs, op_.timeout_ns - waited)); };
    if (pace.pass(waited, arrived, sleep)) return true;
  }
}

}  // namespace dcomm
