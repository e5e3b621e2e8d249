// Where the data of a message lies: the slot of (flow, from, to, seq), as a pure function.
// Floor: schedule (pure integers; host and device).
//
// Two placements serve one algorithm text:
//   push    the sender writes into the receiver's inbox (GPUs: remote stores, local reads).
//   bounce  the reader of a slot is its next writer (CPUs): each cache line crosses between two cores once
//           per direction instead of being invalidated and fetched again, worth 3x (docs/decisions.md).
//           two_shot: the result for a peer is written over the terms that this peer sent.
//           ring: the buffer travels with its chunk and is reduced in place.
//           tree: the child's term and its parent's result share one slot, as in two_shot.
//           exchange: a pair's two slots change hands with every message.
//           fifo: written once in the sender's window, read there by all.
//           pair, message: in the sender's window, one slot per receiver.
#pragma once

#include <cstdint>

#include "base/macros.h"
#include "schedule/ring.h"

namespace dcomm {

/// A family of one-way messages with its own flags; `seq` counts a flow's messages on an edge from 0.
enum class Flow : uint8_t {
  kScatter = 0,     // two_shot phase 1: terms of the receiver's chunk
  kGather = 1,      // two_shot phase 2: the sender's finished chunk
  kRing = 2,        // one hop of the ring
  kRingCredit = 3,  // push only: "the hop's slot is free again"
  kFifo = 4,        // one-to-many messages with credits (broadcast)
  kFifoCredit = 5,
  kBarrier = 6,   // no data
  kTreeUp = 7,    // the sender's partial sum, to its parent
  kTreeDown = 8,  // the result, to a child
  kExchange = 9,  // every pair of ranks swaps messages of one seq: all_gather, reduce_scatter, one_shot
  kPair = 10,     // one-to-one messages with credits: reduce, gather, scatter, all_to_all
  kPairCredit = 11,
  kMessage = 12,  // the same for send and recv, which no collective may come between
  kMessageCredit = 13,
  kPacket = 14,  // one_shot: data in lines that carry their own flags; this flow's flags only wake sleepers
  kDirect = 15,  // no data: "my array may be used", then "I am done with yours"
};
inline constexpr int kNumFlows = 16;

/// Slots of one size and purpose. Flows that share a pool leave each slot to its window's owner between operations.
enum class SlotPool : uint8_t { kMain = 0, kFifo = 1, kExchange = 2, kPair = 3, kMessage = 4, kPacket = 5 };
inline constexpr int kNumSlotPools = 6;

/// The flow that carries the credits of `flow`.
DCOMM_HOST_DEVICE constexpr Flow credit_flow(Flow flow) {
  switch (flow) {
    case Flow::kRing:
      return Flow::kRingCredit;
    case Flow::kPair:
      return Flow::kPairCredit;
    case Flow::kMessage:
      return Flow::kMessageCredit;
    default:
      return Flow::kFifoCredit;
  }
}
DCOMM_HOST_DEVICE constexpr bool is_credit(Flow flow) {
  return flow == Flow::kRingCredit || flow == Flow::kFifoCredit || flow == Flow::kPairCredit ||
         flow == Flow::kMessageCredit;
}

/// Whether its messages lie in slots.
DCOMM_HOST_DEVICE constexpr bool has_slots(Flow flow) { return flow != Flow::kBarrier && flow != Flow::kDirect; }

enum class PlacementKind : uint8_t { kBounce = 0, kPush = 1 };

struct SlotRef {
  int window = 0;  // rank whose window holds the slot
  int index = 0;   // in that window's pool of the channel
  SlotPool pool = SlotPool::kMain;
};

struct Placement {
  PlacementKind kind = PlacementKind::kBounce;
  int world_size = 1;
  int depth = 2;  // slots of each kind: one filled while the other is in use

  /// Slots of a window, per channel.
  DCOMM_HOST_DEVICE constexpr int num_slots(SlotPool pool) const {
    const bool push = kind == PlacementKind::kPush;
    switch (pool) {
      case SlotPool::kMain:
      case SlotPool::kExchange:
        return (push ? 2 : 1) * world_size * depth;
      case SlotPool::kFifo:
        return push ? world_size * depth : depth;
      case SlotPool::kPair:
      case SlotPool::kMessage:
        return world_size * depth;
      case SlotPool::kPacket:
        return world_size * 2;
    }
    return 0;
  }

  /// Whether a slot of this flow is reused under credits. Elsewhere the messages themselves prove it free.
  DCOMM_HOST_DEVICE constexpr bool needs_credit(Flow flow) const {
    return flow == Flow::kFifo || flow == Flow::kPair || flow == Flow::kMessage ||
           (flow == Flow::kRing && kind == PlacementKind::kPush);
  }

  DCOMM_HOST_DEVICE constexpr SlotRef slot(Flow flow, int from, int to, uint64_t seq) const {
    const int turn = static_cast<int>(seq % static_cast<uint64_t>(depth));
    const bool push = kind == PlacementKind::kPush;
    switch (flow) {
      case Flow::kScatter:
      case Flow::kTreeUp:
        return push ? SlotRef{to, from * depth + turn} : SlotRef{from, to * depth + turn};
      case Flow::kGather:
      case Flow::kTreeDown:
        return push ? SlotRef{to, (world_size + from) * depth + turn} : SlotRef{to, from * depth + turn};
      case Flow::kRing:
        return push ? SlotRef{to, to * depth + turn} : travelling_slot(from, seq);
      case Flow::kFifo:
        return push ? SlotRef{to, from * depth + turn, SlotPool::kFifo} : SlotRef{from, turn, SlotPool::kFifo};
      case Flow::kExchange:
        return swapped_slot(from, to, seq);
      case Flow::kPair:
        return push ? SlotRef{to, from * depth + turn, SlotPool::kPair}
                    : SlotRef{from, to * depth + turn, SlotPool::kPair};
      case Flow::kMessage:
        return push ? SlotRef{to, from * depth + turn, SlotPool::kMessage}
                    : SlotRef{from, to * depth + turn, SlotPool::kMessage};
      case Flow::kPacket:
        return {to, from * 2 + static_cast<int>(seq % 2), SlotPool::kPacket};
      default:
        return {};
    }
  }

 private:
  /// A rank sends message seq after it has read its peer's message seq - depth. Bounce: in the very slot that it read.
  /// Push: in the one whose last message, seq - 2 depth, the peer had read when it sent seq - depth.
  DCOMM_HOST_DEVICE constexpr SlotRef swapped_slot(int from, int to, uint64_t seq) const {
    const int turn = static_cast<int>(seq % static_cast<uint64_t>(depth));
    const int side = static_cast<int>(seq / static_cast<uint64_t>(depth) % 2);
    if (kind == PlacementKind::kPush) return {to, (side * world_size + from) * depth + turn, SlotPool::kExchange};
    const int owner = side == 0 ? from : to;
    return {owner, (owner == from ? to : from) * depth + turn, SlotPool::kExchange};
  }

  /// seq counts hops: seq = tile * ring_num_steps + step. Tiles take the `depth` buffer sets in turn.
  /// The self-to-self slots, which two_shot never uses, hold the buffers.
  DCOMM_HOST_DEVICE constexpr SlotRef travelling_slot(int from, uint64_t seq) const {
    const uint64_t steps = static_cast<uint64_t>(ring_num_steps(world_size));
    const uint64_t tile = seq / steps;
    const int step = static_cast<int>(seq % steps);
    const uint64_t sets = static_cast<uint64_t>(depth);
    const int buffer = ring_buffer(ring_send_chunk(from, world_size, step), world_size, tile / sets);
    return {buffer, buffer * depth + static_cast<int>(tile % sets)};
  }
};

}  // namespace dcomm
