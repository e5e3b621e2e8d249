#include "comm/inbox.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "algo/send_recv.h"
#include "launch/host_launch.h"

namespace dcomm {

namespace {

constexpr TileFunctions kMoveBytes{
    [](void* wire, const void* user, size_t count, Scale) { std::memcpy(wire, user, count); },
    [](void* user, const void* wire, size_t count) { std::memcpy(user, wire, count); }, nullptr};

}  // namespace

HostKernels byte_kernels() {
  HostKernels kernels;
  kernels.functions = &kMoveBytes;
  kernels.user_bytes = kernels.wire_bytes = 1;
  return kernels;
}

ChunkPlan plan_message(uint64_t count, DType dtype, const WindowLayout& layout) {
  CollectiveCall bytes;
  bytes.collective = Collective::kSend;
  bytes.dtype = bytes.wire = DType::kU8;
  bytes.count = count * dtype_bytes(dtype);
  return plan_call(bytes, layout);
}

bool Incoming::is_complete() const { return next_tile == num_message_tiles(plan); }

void Incoming::hand_over(std::byte* to) {
  const size_t num_come = is_complete() ? plan.count : plan.segment(0, 0, next_tile).offset;
  if (num_come != 0) std::memcpy(to, target, num_come);
  stash.reset();
  target = to;
}

Inbox::Inbox(const HostContext& context)
    : layout_(context.layout),
      byte_kernels_(byte_kernels()),
      messages_(static_cast<size_t>(context.world_size)),
      stuck_(static_cast<size_t>(context.world_size)) {}

Inbox::Read Inbox::read_one(HostExec& exec, int src) {
  const uint64_t seq = exec.load_counter(Counter::kMessageIn, src);
  if (!exec.has_arrived(Edge{src, Flow::kMessage}, seq)) return Read::kNothing;
  std::list<Incoming>& messages = messages_of(src);
  if (messages.empty() || messages.back().is_complete()) {
    Incoming message;
    if (!recv_envelope(exec, byte_kernels_, src, message.envelope)) return Read::kNothing;
    message.plan = plan_message(message.envelope.count, message.envelope.dtype, layout_);
    messages.push_back(std::move(message));
    return Read::kEnvelope;
  }
  Incoming& message = messages.back();
  const bool has_place = stash(message);
  stuck_[static_cast<size_t>(src)] = has_place ? 0 : 1;
  if (!has_place) return Read::kNoMemory;
  HostKernels kernels = byte_kernels_;
  kernels.out = message.target;
  if (!recv_segment(exec, kernels, message.plan, src, seq, message.next_tile)) return Read::kNothing;
  exec.store_counter(Counter::kMessageIn, seq + 1, src);
  ++message.next_tile;
  return Read::kData;
}

bool Inbox::has_news(HostExec& exec, int src) const {
  return !is_stuck(src) && exec.has_arrived(Edge{src, Flow::kMessage}, exec.load_counter(Counter::kMessageIn, src));
}

/// Sees to it that the message has a place to go; false: no memory.
bool Inbox::stash(Incoming& message) {
  if (message.target != nullptr) return true;
  message.stash.reset(new (std::nothrow) std::byte[message.plan.count]);
  message.target = message.stash.get();
  return message.target != nullptr;
}

Incoming* Inbox::find(int src, int tag) {
  for (Incoming& message : messages_of(src)) {
    if (message.receiver == nullptr && message.envelope.tag == tag) return &message;
  }
  return nullptr;
}

void Inbox::erase(int src, const Incoming& message) {
  std::list<Incoming>& messages = messages_of(src);
  messages.erase(std::find_if(messages.begin(), messages.end(), [&](const Incoming& one) { return &one == &message; }));
}

}  // namespace dcomm
