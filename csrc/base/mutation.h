// Places where a test build can break the protocol on purpose, to prove that a test notices.
// Floor: base. In a normal build every `mutated(...)` is the constant false and vanishes.
#pragma once

#include "base/macros.h"

namespace dcomm {

enum class Mutation : int {
  kNone = 0,
  kRingNoLaneSync,      // ring publishes before all lanes have written the slot
  kNoCreditWait,        // a pushed slot is overwritten without waiting for its credit
  kCreditOffByOne,      // ... or one message too early
  kTwoShotNoLaneSync,   // two-shot signals before all lanes have written their slots
  kWaitOldEpoch,        // a wait is content with the previous message's sequence number
  kSingleSlot,          // two-shot uses one slot although it looks one tile ahead
  kTwoShotNoReuseSync,  // two-shot refills a slot before all lanes have read it
  kRelaxedPublish,      // the publishing store is relaxed instead of release
  kRelaxedArrive,       // the load that waits is relaxed instead of acquire
  kSinglePacketBuffer,  // packets of consecutive operations share one buffer
  kStalePacketTag,      // a packet of two operations ago is taken for this one's
  kCount,
};

constexpr const char* mutation_name(Mutation mutation) {
  switch (mutation) {
    case Mutation::kNone:
      return "none";
    case Mutation::kRingNoLaneSync:
      return "ring_no_lane_sync";
    case Mutation::kNoCreditWait:
      return "no_credit_wait";
    case Mutation::kCreditOffByOne:
      return "credit_off_by_one";
    case Mutation::kTwoShotNoLaneSync:
      return "two_shot_no_lane_sync";
    case Mutation::kWaitOldEpoch:
      return "wait_old_epoch";
    case Mutation::kSingleSlot:
      return "single_slot";
    case Mutation::kTwoShotNoReuseSync:
      return "two_shot_no_reuse_sync";
    case Mutation::kRelaxedPublish:
      return "relaxed_publish";
    case Mutation::kRelaxedArrive:
      return "relaxed_arrive";
    case Mutation::kSinglePacketBuffer:
      return "single_packet_buffer";
    case Mutation::kStalePacketTag:
      return "stale_packet_tag";
    case Mutation::kCount:
      break;
  }
  return "unknown";
}

#if defined(DCOMM_TESTING) && !defined(__CUDACC__)
inline Mutation active_mutation = Mutation::kNone;
inline bool mutated(Mutation mutation) { return DCOMM_UNLIKELY(active_mutation == mutation); }
#else
DCOMM_HOST_DEVICE constexpr bool mutated(Mutation) { return false; }
#endif

}  // namespace dcomm
