// Messages of a communicator: one that the calling thread waits for, or those that the progress thread serves side by
// side. Floor: comm.
#include <cstdio>
#include <list>
#include <sstream>

#include "comm/communicator.h"
#include "comm/failure_text.h"

namespace dcomm {

/// Leaves sequence number, history and header alone: the other ranks do not know of it.
OpRecord Communicator::message_record(const CollectiveCall& call) const {
  OpRecord record;
  record.seq = seq_ + 1;  // when it fails, peers that are still in an earlier collective may finish that one
  record.count = call.count;
  record.collective = call.collective;
  record.dtype = record.wire = call.dtype;
  record.root = call.root;
  record.tag = call.tag;
  return record;
}

Posted Communicator::posted_for(const CollectiveCall& call, int64_t timeout_ns) const {
  Posted posted;
  posted.call = &call;
  posted.timeout_ns = timeout_ns > 0 ? timeout_ns : settings_.timeout_ns;
  posted.warn_ns = settings_.warn_ns;
  return posted;
}

/// Throws what became of it. Only want of memory leaves the communicator usable.
void Communicator::fail_message(const Posted& posted) {
  if (posted.failure.code == ErrorCode::kInternal && !posted.problem.empty())
    throw Error(ErrorCode::kInternal, posted.problem);
  fail_with(message_record(*posted.call), posted.failure, posted.problem);
}

/// In the calling thread, while nothing is queued; the source of a recv.
int Communicator::execute_message(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted) {
  begin_call(call);
  Posted posted = posted_for(call, timeout_ns);
  PointToPoint::Waiting waiting;
  waiting.policy = settings_.wait_policy(false);
  waiting.interrupted = interrupted;
  waiting.stalled = [this](const Posted& one, int64_t waited_ns) { warn_message_stalled(one, waited_ns); };
  messages_.post(posted);
  messages_.move(waiting);
  count_sent(posted.sent_bytes);
  if (DCOMM_UNLIKELY(!posted.is_done)) fail_message(posted);
  return posted.source;
}

/// The messages that the progress thread has taken off the queue.
class Communicator::MessageService {
 public:
  explicit MessageService(Communicator& self) : self_(self) {
    waiting_.policy = self.settings_.wait_policy(true);
    waiting_.stalled = [this](const Posted& one, int64_t waited_ns) { self_.warn_message_stalled(one, waited_ns); };
    waiting_.has_news = [this] { return self_.queue_.num_pushed() != num_seen_; };
  }

  void run() {
    bool goes_on = true;
    while (goes_on) {
      try {
        goes_on = take_all() && !served_.empty();
        if (!goes_on) return;
        if (const Posted* const ended = self_.messages_.move(waiting_)) goes_on = give_back(*ended);
      } catch (const std::exception& error) {  // out of memory for a list
        self_.set_broken({ErrorCode::kInternal, error.what()});
        goes_on = give_all_back();
      }
    }
  }

 private:
  struct Served {
    std::shared_ptr<Work> work;
    Posted posted;
  };

  /// False: the queue is empty.
  bool take_all() {
    num_seen_ = self_.queue_.num_pushed();
    while (const std::shared_ptr<Work> work = self_.queue_.take_message()) {
      try {
        self_.check_usable();
      } catch (const Error& error) {
        if (!self_.queue_.retire(work, error)) return false;
        continue;
      }
      self_.begin_call(work->call());
      served_.push_back({work, self_.posted_for(work->call(), work->timeout_ns())});
      self_.messages_.post(served_.back().posted);
    }
    return true;
  }

  bool give_back(const Posted& ended) {
    auto one = served_.begin();
    while (&one->posted != &ended) ++one;
    self_.count_sent(ended.sent_bytes);
    const std::shared_ptr<Work> work = one->work;
    if (ended.is_done) {
      const int source = ended.source;
      served_.erase(one);
      return self_.queue_.retire(work, {}, source);
    }
    try {
      self_.fail_message(ended);
    } catch (const Error& error) {
      served_.erase(one);
      const bool is_last = served_.empty();
      const bool breaks = self_.broken_.load(std::memory_order_acquire);
      if (breaks) self_.messages_.forget();  // before another thread may run operations
      const bool goes_on = self_.queue_.retire(work, error);
      return breaks && !is_last ? give_all_back() : goes_on;
    }
  }

  /// With the reason why the communicator is broken.
  bool give_all_back() {
    self_.messages_.forget();
    bool goes_on = true;
    while (!served_.empty()) {
      const std::shared_ptr<Work> work = served_.front().work;
      served_.pop_front();
      goes_on = self_.queue_.retire(work, self_.broken_reason_);
    }
    return goes_on;
  }

  Communicator& self_;
  PointToPoint::Waiting waiting_;
  std::list<Served> served_;  // they stay where they are
  size_t num_seen_ = 0;
};

void Communicator::serve_messages() { MessageService(*this).run(); }

void Communicator::warn_message_stalled(const Posted& posted, int64_t waited_ns) const {
  const int peer = posted.peer();
  std::ostringstream text;
  text << operation_text(message_record(*posted.call)) << " for " << (peer == kAnySource ? "any rank" : "rank ");
  if (peer != kAnySource) text << peer;
  std::fprintf(stderr, "dcomm: rank %d has waited %.0f s in %s; positions: %s\n", rank(),
               1e-9 * static_cast<double>(waited_ns), text.str().c_str(), describe_positions(context_).c_str());
}

}  // namespace dcomm
