// How a thread waits for messages: one loop for all that are posted, each with a deadline of its own. Floor: comm.
#include <algorithm>
#include <optional>

#include "comm/point_to_point.h"
#include "exec/message_bell.h"
#include "exec/wait_pace.h"

namespace dcomm {

namespace {

constexpr int64_t kClockNs = 1'000'000;  // by so much a deadline may be late

}  // namespace

Posted* PointToPoint::move(const Waiting& waiting) {
  const auto has_news = [&] { return waiting.has_news != nullptr && waiting.has_news(); };
  const auto can_go_on = [&] { return can_move() || has_news(); };
  std::optional<WaitPace> pace;  // while nothing moves
  int64_t idle_since_ns = 0, now_ns = 0, next_interrupt_check_ns = 0;
  int idle_peer = 0;
  const auto end_idling = [&] {
    if (!pace) return;
    pace.reset();
    context_.waited_ns[static_cast<size_t>(idle_peer)].fetch_add(steady_now_ns() - idle_since_ns,
                                                                 std::memory_order_relaxed);
  };
  for (;;) {
    const bool alarmed = is_alarmed();
    if (DCOMM_UNLIKELY(alarmed)) read_signs();
    const bool moved = move_all();
    if (Posted* const ended = take_ended(); ended != nullptr) {
      end_idling();
      return ended;
    }
    if (has_news()) {
      end_idling();
      return nullptr;
    }
    if (!moved) {
      if (DCOMM_UNLIKELY(alarmed) && fail_stopped()) continue;
      if (waiting.has_news == nullptr && fail_stuck(*posted_.front())) continue;
      if (!pace && WaitPace::look(context_, waiting.policy, awaited_peer(), can_go_on)) continue;
    }
    now_ns = steady_now_ns();
    if (now_ns >= next_clock_ns_) {
      look_at_clocks(waiting, now_ns);
      if (!ended_.empty()) continue;
    }
    if (waiting.interrupted != nullptr && now_ns >= next_interrupt_check_ns) {
      const bool is_first = next_interrupt_check_ns == 0;
      next_interrupt_check_ns = now_ns + kInterruptCheckNs;
      if (!is_first && waiting.interrupted(nullptr)) {
        fail(*posted_.front(), {ErrorCode::kInterrupted, context_.rank, context_.rank, AbortDetail::kInterrupted, 0});
        continue;
      }
    }
    if (moved) {
      end_idling();
      continue;
    }
    if (!pace) {
      idle_since_ns = now_ns;
      idle_peer = awaited_peer();
      pace.emplace(context_, waiting.policy, idle_peer, now_ns);
    }
    pace->pass(now_ns - idle_since_ns, can_go_on, [&] {
      sleep_on_message_bell(context_, std::clamp<int64_t>(next_deadline_ns_ - now_ns, 0, kMaxSleepNs), can_go_on);
    });
  }
}

/// Whether move_all() would do anything.
bool PointToPoint::can_move() {
  HostExec exec = executor();
  for (int peer = 0; peer < context_.world_size; ++peer) {
    if (peer == context_.rank) continue;
    if (inbox_.has_news(exec, peer)) return true;
    if (sends_to(peer).empty()) continue;
    if (exec.may_acquire({peer, Flow::kMessage}, exec.load_counter(Counter::kMessageOut, peer))) return true;
  }
  return false;
}

/// Whose core this thread gets out of the way of: the peer of the message posted first.
int PointToPoint::awaited_peer() const {
  const int peer = posted_.front()->peer();
  if (peer != kAnySource) return peer;
  return next_source_ != context_.rank ? next_source_ : peer_after(next_source_, 1);
}

/// Fails one that is too late, warns of those that wait for long, and finds out when to look again.
void PointToPoint::look_at_clocks(const Waiting& waiting, int64_t now_ns) {
  next_clock_ns_ = now_ns + kClockNs;
  next_deadline_ns_ = INT64_MAX;
  for (Posted* const posted : posted_) {
    // A send behind another one to the same rank does not wait for that rank yet.
    if (posted->is_send() && posted != sends_to(posted->call->root).front()) continue;
    if (posted->since_ns == 0) posted->since_ns = now_ns;
    const int64_t waited_ns = now_ns - posted->since_ns;
    if (waited_ns >= posted->timeout_ns) {
      if (fail_stuck(*posted)) return;
      const bool is_any = posted->peer() == kAnySource;
      return fail(*posted, {ErrorCode::kTimeout, is_any ? context_.rank : posted->peer(), context_.rank,
                            is_any ? AbortDetail::kFromAny : AbortDetail::kNone, waited_ns});
    }
    next_deadline_ns_ = std::min(next_deadline_ns_, posted->since_ns + posted->timeout_ns);
    if (!posted->has_warned && waited_ns >= posted->warn_ns) {
      posted->has_warned = true;
      waiting.stalled(*posted, waited_ns);
    }
  }
}

}  // namespace dcomm
