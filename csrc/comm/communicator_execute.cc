// Communicator: one collective as the thread that runs it goes through it. Floor: comm.
#include <algorithm>
#include <chrono>
#include <sstream>
#include <thread>

#include "base/failpoint.h"
#include "comm/communicator.h"
#include "comm/failure_text.h"
#include "exec/float_environment.h"
#include "protocol/fingerprint.h"

namespace dcomm {

namespace {

constexpr uint64_t kMaxPatientBytes = 32 << 10;  // about what a wake-up of the progress thread costs

/// The larger of a call's two arrays, on a rank that has both.
uint64_t array_bytes(const CollectiveCall& call, int world_size) {
  uint64_t count = call.count;
  if (call.lengths != nullptr) {
    for (const size_t length : call.lengths->send) count += length;
  } else if (has_blocks(call.collective)) {
    count *= static_cast<uint64_t>(world_size);
  }
  return count * dtype_bytes(call.dtype);
}

}  // namespace

/// Whether the next operation is this one alone, and small.
bool Communicator::can_announce(const CollectiveCall& call) const {
  return patience_ns_ > 0 && test_delay_ns_ == 0 && !is_message(call.collective) && call.lengths == nullptr &&
         call.algo != Algo::kDirect && array_bytes(call, world_size()) <= kMaxPatientBytes && queue_.is_empty();
}

/// Whether the peers are seen to enter the announced operation before the patience is over; alone there are none.
bool Communicator::all_peers_enter() const {
  const auto end = std::chrono::steady_clock::now() + std::chrono::nanoseconds(patience_ns_);
  for (int peer = 0; peer < world_size(); ++peer) {
    uint64_t& theirs = context_.control(peer).header.seq;
    while (std::atomic_ref<uint64_t>(theirs).load(std::memory_order_acquire) < current_.seq) {
      if (settings_.oversubscribed || std::chrono::steady_clock::now() >= end) return false;
    }
  }
  return true;
}

void Communicator::begin_call(const CollectiveCall& call) {
  if (DCOMM_UNLIKELY(test_delay_ns_ > 0)) std::this_thread::sleep_for(std::chrono::nanoseconds(test_delay_ns_));
  num_operations_.store(num_operations_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  num_bytes_.store(num_bytes_.load(std::memory_order_relaxed) + array_bytes(call, world_size()),
                   std::memory_order_relaxed);
}

void Communicator::count_sent(uint64_t sent_bytes) {
  num_sent_bytes_.store(num_sent_bytes_.load(std::memory_order_relaxed) + sent_bytes, std::memory_order_relaxed);
}

/// A collective.
void Communicator::execute(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted,
                           bool background) {
  begin_call(call);
  if (world_size() == 1) {
    const FloatEnvironment environment;
    return run_alone(in_components(call), *kernel_table_);
  }
  if (call.lengths != nullptr) check_lengths(call, timeout_ns, interrupted, background);
  if (call.algo == Algo::kDirect && call.collective == Collective::kAllReduce) {
    const Range reach = reach_of(call);
    if (reach.count != call.count) return execute_in_parts(call, reach, timeout_ns, interrupted, background);
  }
  execute_one(call, timeout_ns, interrupted, background);
}

/// An all-reduce of arrays that are reached in part.
void Communicator::execute_in_parts(const CollectiveCall& call, Range reach, int64_t timeout_ns,
                                    InterruptCheck interrupted, bool background) {
  ReachedInPart parts(call, reach);
  parts.ordinary.algo = select_algo(settings_, Algo::kAuto, parts.ordinary.count * dtype_bytes(call.dtype));
  execute_one(parts.ordinary, timeout_ns, interrupted, background);
  parts.copy_out();
  execute_one(parts.direct, timeout_ns, interrupted, background);
}

/// Numbers the operation and tells the peers that this rank enters it.
void Communicator::announce(const CollectiveCall& call) {
  current_ = OpRecord{};
  current_.seq = ++seq_;
  current_.count = call.lengths != nullptr ? 0 : call.count;  // different lengths: checked by check_lengths
  current_.collective = call.collective;
  current_.algo = call.algo;
  current_.dtype = call.dtype;
  current_.wire = call.wire;
  current_.op = call.op;
  current_.root = has_root(call.collective) ? call.root : -1;
  if (call.algo == Algo::kDirect || call.shared_in.windows != nullptr) {
    current_.in_region = call.shared_in.region;
    current_.in_offset = call.shared_in.offset;
    current_.out_region = call.shared_out.region;
    current_.out_offset = call.shared_out.offset;
  }

  // With the history in it: a rank that could finish a broadcast without hearing from all notices in its next
  // operation that somebody called something else.
  history_ = hash_mix(history_, fingerprint(current_)) | 1;  // 0 means "nothing published yet"
  store_record(context_.control(rank()).records[current_.seq % 2], current_);
  failpoint("before_header");
  begin_operation(context_, current_.seq, history_);
  failpoint("header_published");
  announced_ = true;
}

void Communicator::execute_one(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted,
                               bool background) {
  if (!announced_) announce(call);
  announced_ = false;
  HostOp op;
  op.seq = current_.seq;
  op.hash = history_;
  prepare(op, timeout_ns, interrupted, background);

  bool finished = false;
  uint64_t sent_bytes = 0;
  {
    const FloatEnvironment environment;
    if (DCOMM_UNLIKELY(is_complex(call.dtype))) {
      finished = run_single_lane(context_, op, in_components(call), *kernel_table_, scratch_, &sent_bytes);
    } else {
      finished = run_single_lane(context_, op, call, *kernel_table_, scratch_, &sent_bytes);
    }
  }
  count_sent(sent_bytes);
  if (op.all_lent || (call.algo == Algo::kDirect && call.collective == Collective::kAllReduce)) {
    num_direct_.store(num_direct_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  if (DCOMM_UNLIKELY(!finished)) break_down(current_, op.failure);
  failpoint("before_completed");
  std::atomic_ref<uint64_t>(context_.control(rank()).header.completed).store(op.seq, std::memory_order_release);
  failpoint("after_completed");
}

void Communicator::prepare(HostOp& op, int64_t timeout_ns, InterruptCheck interrupted, bool background) {
  op.policy = settings_.wait_policy(background);
  op.timeout_ns = timeout_ns > 0 ? timeout_ns : settings_.timeout_ns;
  op.warn_ns = settings_.warn_ns;
  op.interrupted = interrupted;
  op.note_ns = std::min(op.note_ns, op.timeout_ns / 2);
  op.stalled = &Communicator::warn_stalled;
  op.noted = [](void* argument) {
    const auto* self = static_cast<const Communicator*>(argument);
    self->note_call_site(self->current_.seq);
  };
  op.argument = this;
}

/// Every rank tells every other how much it will send, so that a disagreement has both numbers to show.
void Communicator::check_lengths(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted,
                                 bool background) {
  const auto n = static_cast<size_t>(world_size());
  const std::vector<int64_t> promised(call.lengths->send.begin(), call.lengths->send.end());
  std::vector<int64_t> coming(n);
  CollectiveCall lengths;
  lengths.collective = Collective::kAllToAll;
  lengths.dtype = lengths.wire = DType::kI64;
  lengths.in = promised.data();
  lengths.out = coming.data();
  lengths.count = 1;
  execute_one(lengths, timeout_ns, interrupted, background);
  for (size_t peer = 0; peer < n; ++peer) {
    if (coming[peer] == static_cast<int64_t>(call.lengths->recv[peer])) continue;
    Failure failure;
    failure.code = ErrorCode::kMismatch;
    failure.culprit = static_cast<int>(peer);
    failure.reporter = rank();
    std::ostringstream text;
    text << "all_to_all: rank " << peer << " sends " << coming[peer] << " elements to rank " << rank()
         << ", which expects " << call.lengths->recv[peer] << ": send_counts[" << rank() << "] on rank " << peer
         << " must equal recv_counts[" << peer << "] on rank " << rank()
         << "; compare them and start a new communicator";
    fail_with(current_, failure, text.str());
  }
}

}  // namespace dcomm
