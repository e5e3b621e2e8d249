// Places where a test build can break the protocol on purpose, to prove that a test notices.
// Floor: base. In a normal build every `mutated(...)` is the constant false and vanishes.
#pragma once

#include "base/macros.h"

namespace dcomm {

enum class Mutation : int {
  kNone = 0,
  kRingNoLaneSync,         // ring publishes before all lanes have written the slot
  kNoCreditWait,           // a pushed slot is overwritten without waiting for its credit
  kCreditOffByOne,         // ... or one message too early
  kRingWrongChunk,         // at one step of the ring a rank handles another chunk
  kTwoShotNoLaneSync,      // two-shot scatters before all lanes have written their slots
  kTwoShotNoGatherSync,    // two-shot hands its results out before all lanes have written them
  kWaitOldEpoch,           // a wait is content with the previous message's sequence number
  kSingleSlot,             // two-shot uses one slot although it looks one tile ahead
  kTwoShotNoReuseSync,     // two-shot refills a slot before all lanes have read it
  kRelaxedPublish,         // the publishing store is relaxed instead of release
  kRelaxedArrive,          // the load that waits is relaxed instead of acquire
  kTreeNoReuseSync,        // the tree refills a slot before all lanes have read it
  kSwappedTreeParent,      // a rank climbs to its parent in the other tree
  kExchangeNoLaneSync,     // an exchange signals before all lanes have written their slots
  kExchangeNoReuseSync,    // an exchange refills a slot before all lanes have read it
  kSingleExchangeSlot,     // an exchange uses one slot although it looks one tile ahead
  kWrongTailOp,            // in the last, partial pack of a tile the own terms are subtracted
  kSinglePacketBuffer,     // packets of consecutive operations share one buffer
  kStalePacketTag,         // a packet of two operations ago is taken for this one's
  kDirectNoReadyWait,      // a rank uses its peers' arrays before they have said that they are ready
  kDirectNoDoneWait,       // ... returns before they have said that they are done with its own
  kDirectNoLaneSync,       // ... says that it is done before all its lanes are
  kDirectOwnRecordOnly,    // ... takes its own array's being in reach for all ranks'
  kRunFromStart,           // a tile that begins inside one of many arrays takes it from its start
  kExitIgnoresCompleted,   // a peer that has left ends also the operations that it had completed
  kNoLastLook,             // a wait that is told to stop does not look once more for what the peer published before
  kFp8ScaleOff,            // a block's scale is twice what it should be
  kFp8NoNanScale,          // inf and NaN do not make a block's scale NaN
  kFp8OwnerKeepsSum,       // the owner of a chunk stores its sum as it was before it was encoded for the others
  kFp8BlockOwnerKeepsSum,  // ... on a GPU
  kFp8ChunkInBlock,        // chunks begin inside of blocks, so that an element's block depends on how a message is cut
  kBlockNoPublishSync,     // a block of a GPU publishes before all its threads have written
  kBlockNoReleaseSync,     // ... gives a slot back before all have read it
  kBlockNoSignalSync,      // ... tells all ranks before all its threads are done
  kBlockNoArriveSync,      // ... whose first thread has seen a message goes on without the others having waited for it
  kBlockNoHeaderCheck,     // ... does not compare its call with its peers'
  kBlockNoHeaderWait,      // ... compares what has arrived of them when its packets have, which do not bring them along
  kBlockNoEnvelopeCheck,   // ... takes in whatever message comes
  kBlockNoBorrowCheck,     // ... uses its peers' arrays without comparing calls
  kFirstReasonStays,       // the reason of an earlier operation does not replace that of a later one
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
    case Mutation::kRingWrongChunk:
      return "ring_wrong_chunk";
    case Mutation::kTwoShotNoGatherSync:
      return "two_shot_no_gather_sync";
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
    case Mutation::kTreeNoReuseSync:
      return "tree_no_reuse_sync";
    case Mutation::kSwappedTreeParent:
      return "swapped_tree_parent";
    case Mutation::kExchangeNoLaneSync:
      return "exchange_no_lane_sync";
    case Mutation::kExchangeNoReuseSync:
      return "exchange_no_reuse_sync";
    case Mutation::kSingleExchangeSlot:
      return "single_exchange_slot";
    case Mutation::kWrongTailOp:
      return "wrong_tail_op";
    case Mutation::kSinglePacketBuffer:
      return "single_packet_buffer";
    case Mutation::kStalePacketTag:
      return "stale_packet_tag";
    case Mutation::kDirectNoReadyWait:
      return "direct_no_ready_wait";
    case Mutation::kDirectNoDoneWait:
      return "direct_no_done_wait";
    case Mutation::kDirectNoLaneSync:
      return "direct_no_lane_sync";
    case Mutation::kDirectOwnRecordOnly:
      return "direct_own_record_only";
    case Mutation::kRunFromStart:
      return "run_from_start";
    case Mutation::kExitIgnoresCompleted:
      return "exit_ignores_completed";
    case Mutation::kNoLastLook:
      return "no_last_look";
    case Mutation::kFp8ScaleOff:
      return "fp8_scale_off";
    case Mutation::kFp8NoNanScale:
      return "fp8_no_nan_scale";
    case Mutation::kFp8OwnerKeepsSum:
      return "fp8_owner_keeps_sum";
    case Mutation::kFp8BlockOwnerKeepsSum:
      return "fp8_block_owner_keeps_sum";
    case Mutation::kFp8ChunkInBlock:
      return "fp8_chunk_in_block";
    case Mutation::kBlockNoPublishSync:
      return "block_no_publish_sync";
    case Mutation::kBlockNoReleaseSync:
      return "block_no_release_sync";
    case Mutation::kBlockNoSignalSync:
      return "block_no_signal_sync";
    case Mutation::kBlockNoArriveSync:
      return "block_no_arrive_sync";
    case Mutation::kBlockNoHeaderCheck:
      return "block_no_header_check";
    case Mutation::kBlockNoHeaderWait:
      return "block_no_header_wait";
    case Mutation::kBlockNoEnvelopeCheck:
      return "block_no_envelope_check";
    case Mutation::kFirstReasonStays:
      return "first_reason_stays";
    case Mutation::kBlockNoBorrowCheck:
      return "block_no_borrow_check";
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
