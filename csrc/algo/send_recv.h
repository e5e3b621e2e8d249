// Send and recv: one message from rank to rank. Floor: algo (host and device).
//
// An envelope, then the data, slot by slot, all on one flow under credits: the sender is at most `depth` slots ahead.
// The receiver reads envelope and data in two calls, or slot by slot between other things: the envelope says whose the
// data is, and where it goes. A sender too may go slot by slot.
#pragma once

#include "protocol/envelope.h"
#include "protocol/exec.h"
#include "schedule/partition.h"

namespace dcomm {

/// Slots that the data takes; an empty message is its envelope alone.
DCOMM_HOST_DEVICE constexpr uint64_t num_message_tiles(const ChunkPlan& plan) {
  return plan.count == 0 ? 0 : plan.num_tiles();
}

/// Message `seq` of the edge; the caller keeps the counter.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool send_envelope(Exec& exec, const Kernels& kernels, int dst, uint64_t seq,
                                     const Envelope& envelope) {
  const Edge edge{dst, Flow::kMessage};
  const auto to = exec.acquire(edge, seq);
  if (to == nullptr) return false;
  kernels.put_envelope(exec, to, envelope);
  exec.publish(edge, seq);
  return true;
}

/// One slot of data, message `seq` of the edge; the caller keeps the counter.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool send_segment(Exec& exec, const Kernels& kernels, const ChunkPlan& plan, int dst, uint64_t seq,
                                    uint64_t tile) {
  const Edge edge{dst, Flow::kMessage};
  const auto to = exec.acquire(edge, seq);
  if (to == nullptr) return false;
  kernels.encode(exec, to, plan.segment(0, exec.channel(), tile));
  exec.publish(edge, seq);
  return true;
}

/// plan: one chunk (the whole message), cut into segments that fit a message slot; the receiver's must be the same.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool send(Exec& exec, const Kernels& kernels, const ChunkPlan& plan, int dst,
                            const Envelope& envelope) {
  const uint64_t first = exec.load_counter(Counter::kMessageOut, dst);
  if (!send_envelope(exec, kernels, dst, first, envelope)) return false;
  const uint64_t num_tiles = num_message_tiles(plan);
  for (uint64_t tile = 0; tile < num_tiles; ++tile) {
    if (!send_segment(exec, kernels, plan, dst, first + 1 + tile, tile)) return false;
  }
  exec.store_counter(Counter::kMessageOut, first + 1 + num_tiles, dst);
  return true;
}

template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool recv_envelope(Exec& exec, const Kernels& kernels, int src, Envelope& envelope) {
  const Edge edge{src, Flow::kMessage};
  const uint64_t seq = exec.load_counter(Counter::kMessageIn, src);
  const auto from = exec.arrive(edge, seq);
  if (from == nullptr) return false;
  kernels.get_envelope(exec, envelope, from);
  exec.release(edge, seq);
  exec.store_counter(Counter::kMessageIn, seq + 1, src);
  exec.sync();  // the lanes load it again for the data
  return true;
}

/// One slot of data, message `seq` of the edge; the caller keeps the counter.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool recv_segment(Exec& exec, const Kernels& kernels, const ChunkPlan& plan, int src, uint64_t seq,
                                    uint64_t tile) {
  const Edge edge{src, Flow::kMessage};
  const auto from = exec.arrive(edge, seq);
  if (from == nullptr) return false;
  kernels.decode(exec, plan.segment(0, exec.channel(), tile), from);
  exec.release(edge, seq);
  return true;
}

/// The data of the message whose envelope came last.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool recv_data(Exec& exec, const Kernels& kernels, const ChunkPlan& plan, int src) {
  const uint64_t first = exec.load_counter(Counter::kMessageIn, src);
  const uint64_t num_tiles = num_message_tiles(plan);
  for (uint64_t tile = 0; tile < num_tiles; ++tile) {
    if (!recv_segment(exec, kernels, plan, src, first + tile, tile)) return false;
  }
  exec.store_counter(Counter::kMessageIn, first + num_tiles, src);
  return true;
}

}  // namespace dcomm
