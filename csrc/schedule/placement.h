// Where the data of a message lies: the slot of (flow, from, to, seq), as a pure function.
// Floor: schedule (pure integers; host and device).
//
// Two placements serve one algorithm text:
//   push    the sender writes into the receiver's inbox (GPUs: remote stores, local reads).
//   bounce  the reader of a slot is its next writer (CPUs): each cache line crosses between two cores once
//           per direction instead of being invalidated and fetched again, worth 3x (docs/decisions.md).
//           two_shot: the result for a peer is written over the terms that this peer sent.
//           ring: the buffer travels with its chunk and is reduced in place.
//           fifo: written once in the sender's window, read there by all.
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
  kBarrier = 6,  // no data
};
inline constexpr int kNumFlows = 7;

/// The flow that carries the credits of `flow`.
DCOMM_HOST_DEVICE constexpr Flow credit_flow(Flow flow) {
  return flow == Flow::kRing ? Flow::kRingCredit : Flow::kFifoCredit;
}
DCOMM_HOST_DEVICE constexpr bool is_credit(Flow flow) { return flow == Flow::kRingCredit || flow == Flow::kFifoCredit; }

enum class PlacementKind : uint8_t { kBounce = 0, kPush = 1 };

struct SlotRef {
  int window = 0;     // rank whose window holds the slot
  int index = 0;      // in that window's slots of the channel
  bool fifo = false;  // index counts fifo slots instead
};

struct Placement {
  PlacementKind kind = PlacementKind::kBounce;
  int world_size = 1;
  int depth = 2;  // slots of each kind: one filled while the other is in use

  DCOMM_HOST_DEVICE constexpr int slots_per_channel() const {
    return (kind == PlacementKind::kPush ? 2 : 1) * world_size * depth;
  }
  DCOMM_HOST_DEVICE constexpr int fifo_slots_per_channel() const {
    return kind == PlacementKind::kPush ? world_size * depth : depth;
  }

  /// Whether a slot of this flow is reused under credits. Elsewhere the messages themselves prove it free.
  DCOMM_HOST_DEVICE constexpr bool needs_credit(Flow flow) const {
    return flow == Flow::kFifo || (flow == Flow::kRing && kind == PlacementKind::kPush);
  }

  DCOMM_HOST_DEVICE constexpr SlotRef slot(Flow flow, int from, int to, uint64_t seq) const {
    const int turn = static_cast<int>(seq % static_cast<uint64_t>(depth));
    const bool push = kind == PlacementKind::kPush;
    switch (flow) {
      case Flow::kScatter:
        return push ? SlotRef{to, from * depth + turn} : SlotRef{from, to * depth + turn};
      case Flow::kGather:
        return push ? SlotRef{to, (world_size + from) * depth + turn} : SlotRef{to, from * depth + turn};
      case Flow::kRing:
        return push ? SlotRef{to, to * depth + turn} : travelling_slot(from, seq);
      case Flow::kFifo:
        return push ? SlotRef{to, from * depth + turn, true} : SlotRef{from, turn, true};
      default:
        return {};
    }
  }

 private:
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
