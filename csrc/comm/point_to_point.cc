#include "comm/point_to_point.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <sstream>

#include "algo/send_recv.h"

namespace dcomm {

namespace {

using SteadyClock = std::chrono::steady_clock;

// A sender refills its slots within this, when it runs; to leave and sleep between two slots would cost much more.
constexpr std::chrono::microseconds kRefill{50};
constexpr std::chrono::milliseconds kLongestDrain{1};  // the wait that called has a deadline and signals to look at

/// Messages are moved as bytes: whatever the dtype, no bit of it changes.
constexpr TileFunctions kMoveBytes{
    [](void* wire, const void* user, size_t count, Scale) { std::memcpy(wire, user, count); },
    [](void* user, const void* wire, size_t count) { std::memcpy(user, wire, count); }, nullptr};

HostKernels byte_kernels() {
  HostKernels kernels;
  kernels.functions = &kMoveBytes;
  kernels.user_bytes = kernels.wire_bytes = 1;
  return kernels;
}

CollectiveCall as_bytes(uint64_t count, DType dtype) {
  CollectiveCall bytes;
  bytes.collective = Collective::kSend;
  bytes.dtype = bytes.wire = DType::kU8;
  bytes.count = count * dtype_bytes(dtype);
  return bytes;
}

ChunkPlan plan_message(const Envelope& envelope, const WindowLayout& layout) {
  return plan_call(as_bytes(envelope.count, envelope.dtype), layout);
}

std::string message_text(uint64_t count, DType dtype, int32_t tag) {
  std::ostringstream text;
  text << count << " elements of " << dtype_name(dtype) << " with tag " << tag;
  return text.str();
}

}  // namespace

PointToPoint::PointToPoint(HostContext& context, LaneScratch& scratch)
    : context_(context),
      scratch_(scratch),
      byte_kernels_(byte_kernels()),
      messages_(static_cast<size_t>(context.world_size)) {}

bool PointToPoint::Incoming::is_complete() const { return next_tile == num_message_tiles(plan); }

bool PointToPoint::send(HostOp& op, const CollectiveCall& call, uint64_t* sent_bytes) {
  HostExec exec = executor(op);
  if (exec.is_stopped()) return false;  // with free slots nothing else would notice
  HostKernels kernels = byte_kernels_;
  kernels.in = static_cast<const std::byte*>(call.in);
  kernels.sent_bytes = sent_bytes;
  const Envelope envelope{call.count, call.tag, call.dtype};
  return dcomm::send(exec, kernels, plan_message(envelope, context_.layout), call.root, envelope);
}

bool PointToPoint::recv(HostOp& op, const CollectiveCall& call) {
  const int src = call.root;
  HostExec exec = executor(op);
  std::list<Incoming>& messages = messages_of(src);
  for (;;) {
    const auto found = std::find_if(messages.begin(), messages.end(),
                                    [&](const Incoming& message) { return message.envelope.tag == call.tag; });
    if (found != messages.end()) {
      if (!is_expected(op, call, found->envelope)) return false;
      hand_over(*found, static_cast<std::byte*>(call.out));
      if (found->is_complete()) {
        messages.erase(found);
        return true;
      }
    }
    const Edge edge{src, Flow::kMessage};
    const uint64_t seq = exec.load_counter(Counter::kMessageIn, src);
    if (exec.arrive(edge, seq) == nullptr) return false;
    // The wait may have taken it in itself: a send that ran meanwhile waited, too.
    if (exec.load_counter(Counter::kMessageIn, src) != seq) continue;
    if (read_one_that_has_come(exec, src)) continue;
    if (op.failed.load(std::memory_order_acquire)) return false;
    const Envelope& other = messages.back().envelope;
    throw_error(ErrorCode::kInternal, "recv: no memory for a message of rank ", src,
                " that comes first: ", message_text(other.count, other.dtype, other.tag), "; receive it before");
  }
}

void PointToPoint::drain() {
  HostOp op;  // nothing here waits: it needs no deadline
  op.hash = kMessageHash;
  HostExec exec = executor(op);
  const auto start = SteadyClock::now();
  auto last_progress = start - kRefill;  // nothing half done: no reason to stay
  for (;;) {
    bool progressed = false;
    bool more_expected = false;
    for (int src = 0; src < context_.world_size; ++src) {
      if (src == context_.rank) continue;
      progressed |= read_one_that_has_come(exec, src);
      more_expected |= is_mid_message(src);
    }
    const auto now = SteadyClock::now();
    if (progressed) last_progress = now;
    if (now - start > kLongestDrain) return;
    if (!progressed) {
      if (!more_expected || now - last_progress >= kRefill) return;
      sched_yield();
    }
  }
}

bool PointToPoint::is_mid_message(int src) {
  const std::list<Incoming>& messages = messages_of(src);
  return !messages.empty() && !messages.back().is_complete();
}

/// False: nothing has come, or there is no memory for it; then it stays in the slots and the sender waits.
bool PointToPoint::read_one_that_has_come(HostExec& exec, int src) {
  if (!exec.has_arrived(Edge{src, Flow::kMessage}, exec.load_counter(Counter::kMessageIn, src))) return false;
  if (!is_mid_message(src)) return read_envelope(exec, src);
  Incoming& message = messages_of(src).back();
  return stash(message) && read_segment(exec, src, message);
}

bool PointToPoint::read_envelope(HostExec& exec, int src) {
  Incoming message;
  if (!recv_envelope(exec, byte_kernels_, src, message.envelope)) return false;
  message.plan = plan_message(message.envelope, context_.layout);
  messages_of(src).push_back(std::move(message));
  return true;
}

bool PointToPoint::read_segment(HostExec& exec, int src, Incoming& message) const {
  HostKernels kernels = byte_kernels_;
  kernels.out = message.target;
  const uint64_t seq = exec.load_counter(Counter::kMessageIn, src);
  if (!recv_segment(exec, kernels, message.plan, src, seq, message.next_tile)) return false;
  exec.store_counter(Counter::kMessageIn, seq + 1, src);
  ++message.next_tile;
  return true;
}

/// Sees to it that the message has a place to go; false: no memory.
bool PointToPoint::stash(Incoming& message) {
  if (message.target != nullptr) return true;
  message.stash.reset(new (std::nothrow) std::byte[message.plan.count]);
  message.target = message.stash.get();
  return message.target != nullptr;
}

/// What has come goes to the caller's array, and what is still to come as well.
void PointToPoint::hand_over(Incoming& message, std::byte* to) {
  const size_t num_come =
      message.is_complete() ? message.plan.count : message.plan.segment(0, 0, message.next_tile).offset;
  if (num_come != 0) std::memcpy(to, message.target, num_come);
  message.stash.reset();
  message.target = to;
}

bool PointToPoint::is_expected(HostOp& op, const CollectiveCall& call, const Envelope& envelope) {
  if (envelope.count == call.count && envelope.dtype == call.dtype) return true;
  std::ostringstream text;
  text << "recv: rank " << call.root << " sent " << message_text(envelope.count, envelope.dtype, envelope.tag)
       << " to rank " << context_.rank << ", which expects " << message_text(call.count, call.dtype, call.tag)
       << "; make the two calls agree, or tell messages apart by their tags, and start a new communicator";
  problem_ = text.str();
  op.failure = {ErrorCode::kMismatch, call.root, context_.rank, AbortDetail::kMessage, 0};
  op.failed.store(true, std::memory_order_release);
  return false;
}

}  // namespace dcomm
