#include "comm/point_to_point.h"

#include <algorithm>
#include <sstream>

#include "algo/send_recv.h"
#include "base/failpoint.h"
#include "exec/message_bell.h"
#include "exec/wait_pace.h"

namespace dcomm {

namespace {

// Of one peer before the others have their turn: enough for what its slots hold.
constexpr int kPiecesPerTurn = 8;

std::string message_text(uint64_t count, DType dtype, int32_t tag) {
  std::ostringstream text;
  text << count << " elements of " << dtype_name(dtype) << " with tag " << tag;
  return text.str();
}

void erase_one(std::vector<Posted*>& from, const Posted& posted) {
  const auto found = std::find(from.begin(), from.end(), &posted);
  if (found != from.end()) from.erase(found);
}

}  // namespace

PointToPoint::PointToPoint(HostContext& context, LaneScratch& scratch)
    : context_(context),
      scratch_(scratch),
      byte_kernels_(byte_kernels()),
      inbox_(context),
      sends_(static_cast<size_t>(context.world_size)),
      exits_(static_cast<size_t>(context.world_size)) {
  op_.hash = kMessageHash;
}

void PointToPoint::post(Posted& posted) {
  posted_.push_back(&posted);
  next_clock_ns_ = 0;
  if (!posted.is_send()) return post_recv(posted);
  posted.plan = plan_message(posted.call->count, posted.call->dtype, context_.layout);
  sends_to(posted.call->root).push_back(&posted);
  Failure failure;
  if (!is_alarmed()) return;
  read_signs();  // with free slots nothing else would notice
  if (is_stopped(posted, failure)) fail(posted, failure);
}

void PointToPoint::post_recv(Posted& posted) {
  const bool takes_any = posted.call->root == kAnySource;
  if (takes_any) {
    // Who has waited longest in its slots must not stand behind what others have in the stash.
    HostExec exec = executor();
    for (int i = 0; i < context_.world_size; ++i) read_from(exec, peer_after(next_source_, i));
  }
  for (int i = 0; i < (takes_any ? context_.world_size : 1); ++i) {
    const int src = takes_any ? peer_after(next_source_, i) : posted.call->root;
    Incoming* const message = inbox_.find(src, posted.call->tag);
    if (message != nullptr) return claim(posted, src, *message);
  }
  receives_.push_back(&posted);
}

bool PointToPoint::move_all() {
  HostExec exec = executor();
  bool moved = false;
  for (int i = 0; i < context_.world_size; ++i) {
    const int peer = peer_after(next_source_, i);
    if (peer == context_.rank) continue;
    moved |= send_to(exec, peer);
    moved |= read_from(exec, peer);
  }
  return moved;
}

bool PointToPoint::send_to(HostExec& exec, int dst) {
  std::vector<Posted*>& sends = sends_to(dst);
  bool moved = false;
  for (int piece = 0; piece < kPiecesPerTurn && !sends.empty(); ++piece) {
    Posted& posted = *sends.front();
    const uint64_t seq = exec.load_counter(Counter::kMessageOut, dst);
    if (!exec.may_acquire({dst, Flow::kMessage}, seq)) break;
    const CollectiveCall& call = *posted.call;
    HostKernels kernels = byte_kernels_;
    kernels.in = static_cast<const std::byte*>(call.in);
    kernels.sent_bytes = &posted.sent_bytes;
    if (posted.next_piece == 0) {
      send_envelope(exec, kernels, dst, seq, Envelope{call.count, call.tag, call.dtype});
    } else {
      send_segment(exec, kernels, posted.plan, dst, seq, posted.next_piece - 1);
    }
    failpoint(posted.next_piece == 0 ? "envelope_sent" : "piece_sent");
    exec.store_counter(Counter::kMessageOut, seq + 1, dst);
    moved = true;
    posted.since_ns = 0;
    if (++posted.next_piece > num_message_tiles(posted.plan)) finish(posted);
  }
  if (moved) ring_message_bell(context_, dst);
  return moved;
}

bool PointToPoint::read_from(HostExec& exec, int src) {
  if (src == context_.rank) return false;
  bool moved = false;
  for (int piece = 0; piece < kPiecesPerTurn; ++piece) {
    const Inbox::Read read = inbox_.read_one(exec, src);
    if (read == Inbox::Read::kNothing || read == Inbox::Read::kNoMemory) break;
    moved = true;
    failpoint(read == Inbox::Read::kEnvelope ? "envelope_read" : "piece_read");
    Incoming& message = inbox_.newest(src);
    if (read == Inbox::Read::kEnvelope) {
      const auto first = std::find_if(receives_.begin(), receives_.end(), [&](const Posted* posted) {
        const CollectiveCall& call = *posted->call;
        return call.tag == message.envelope.tag && (call.root == src || call.root == kAnySource);
      });
      if (first != receives_.end()) claim(**first, src, message);
    } else if (message.receiver != nullptr) {
      Posted& receiver = *message.receiver;
      receiver.since_ns = 0;
      if (!message.is_complete()) continue;
      inbox_.erase(src, message);
      finish(receiver);
    }
  }
  if (moved) ring_message_bell(context_, src);
  return moved;
}

/// The message becomes this receive's.
void PointToPoint::claim(Posted& posted, int src, Incoming& message) {
  if (posted.call->root == kAnySource) next_source_ = peer_after(src, 1);
  if (!is_expected(posted, src, message.envelope)) {
    return fail(posted, {ErrorCode::kMismatch, src, context_.rank, AbortDetail::kMessage, 0});
  }
  erase_one(receives_, posted);
  posted.source = src;
  posted.since_ns = 0;
  message.receiver = &posted;
  message.hand_over(static_cast<std::byte*>(posted.call->out));
  if (!message.is_complete()) return;
  inbox_.erase(src, message);
  finish(posted);
}

bool PointToPoint::is_expected(Posted& posted, int src, const Envelope& envelope) {
  const CollectiveCall& call = *posted.call;
  if (envelope.count == call.count && envelope.dtype == call.dtype) return true;
  std::ostringstream text;
  text << (call.root == kAnySource ? "recv_any" : "recv") << ": rank " << src << " sent "
       << message_text(envelope.count, envelope.dtype, envelope.tag) << " to rank " << context_.rank
       << ", which expects " << message_text(call.count, call.dtype, call.tag)
       << "; make the two calls agree, or tell messages apart by their tags, and start a new communicator";
  posted.problem = text.str();
  return false;
}

void PointToPoint::finish(Posted& posted) {
  posted.is_done = true;
  remove(posted);
}

void PointToPoint::fail(Posted& posted, const Failure& failure) {
  posted.failure = failure;
  remove(posted);
}

void PointToPoint::remove(Posted& posted) {
  erase_one(posted_, posted);
  erase_one(posted.is_send() ? sends_to(posted.call->root) : receives_, posted);
  ended_.push_back(&posted);
}

Posted* PointToPoint::take_ended() {
  if (ended_.empty()) return nullptr;
  Posted* const first = ended_.front();
  ended_.erase(ended_.begin());
  return first;
}

void PointToPoint::forget() {
  posted_.clear();
  receives_.clear();
  ended_.clear();
  for (auto& sends : sends_) sends.clear();
}

// ---- Failures: what a receive of a stash without memory, a peer that has gone, and a broken communicator mean ----

bool PointToPoint::is_alarmed() const {
  std::atomic_ref<uint32_t> attention(context_.control(context_.rank).abort.attention);
  return attention.load(std::memory_order_acquire) != 0;
}

void PointToPoint::read_signs() {
  abort_word_ = std::atomic_ref<uint64_t>(context_.control(context_.rank).abort.reason).load(std::memory_order_acquire);
  for (int peer = 0; peer < context_.world_size; ++peer) {
    exits_[static_cast<size_t>(peer)] = context_.exits->get(peer);
  }
}

/// Whether nothing of it will move any more. Who waits for any rank does so while there is one that may still send; but
/// a death is no way to leave, and whom it leaves without a message nobody knows.
bool PointToPoint::is_stopped(const Posted& posted, Failure& failure) const {
  if (abort_word_ != 0) {
    // A message has no number: whatever failed elsewhere, its peer will not answer.
    const AbortReason reason = AbortReason::unpack(abort_word_);
    failure = {reason.code, reason.culprit, reason.reporter, static_cast<AbortDetail>(reason.detail), 0};
    return true;
  }
  const auto lost = [&](int peer) {
    failure = {ErrorCode::kPeerLost, peer, context_.rank, exits_[static_cast<size_t>(peer)], 0};
    return true;
  };
  const int only = posted.peer();
  if (only != kAnySource) return exits_[static_cast<size_t>(only)] != AbortDetail::kNone && lost(only);
  int last_left = -1;
  bool somebody_is_there = false;
  for (int peer = 0; peer < context_.world_size; ++peer) {
    if (peer == context_.rank) continue;
    const AbortDetail how = exits_[static_cast<size_t>(peer)];
    const bool has_left = how == AbortDetail::kLeft || how == AbortDetail::kExits;
    if (how != AbortDetail::kNone && !has_left) return lost(peer);
    somebody_is_there |= how == AbortDetail::kNone;
    if (has_left) last_left = peer;
  }
  return !somebody_is_there && lost(last_left);
}

/// After read_signs() and a move_all() that found nothing: what a peer published before it left has been taken.
bool PointToPoint::fail_stopped() {
  for (Posted* const posted : posted_) {
    Failure failure;
    if (!is_stopped(*posted, failure)) continue;
    if (posted->since_ns != 0) failure.waited_ns = steady_now_ns() - posted->since_ns;
    fail(*posted, failure);
    return true;
  }
  return false;
}

/// Of a receive whose peer's next message, which somebody else must ask for, finds no memory.
bool PointToPoint::fail_stuck(Posted& posted) {
  const int src = posted.call->root;
  if (posted.is_send() || posted.source != kAnySource || src == kAnySource || !inbox_.is_stuck(src)) return false;
  const Envelope& other = inbox_.newest(src).envelope;
  std::ostringstream text;
  text << "recv: no memory for a message of rank " << src
       << " that comes first: " << message_text(other.count, other.dtype, other.tag) << "; receive it before";
  posted.problem = text.str();
  fail(posted, {ErrorCode::kInternal, src, context_.rank, AbortDetail::kMessage, 0});
  return true;
}

}  // namespace dcomm
