// What lies where in a rank's window. Floor: schedule (pure integers; host and device).
//
//   [control page: header, records, abort] [flags: channel x flow x peer, 128 B each]
//   [packets: channel x parity x peer x packet_bytes] [slots: pool by pool, channel x num_slots(pool) x slot_bytes]
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/macros.h"
#include "schedule/partition.h"
#include "schedule/placement.h"

namespace dcomm {

inline constexpr size_t kPageBytes = 4096;
inline constexpr size_t kLineBytes = 64;   // what the cores of a host exchange
inline constexpr size_t kFlagBytes = 128;  // two cache lines: prefetchers fetch pairs; a GPU line is 128 B
inline constexpr size_t kControlBytes = kPageBytes;
inline constexpr size_t kPacketGrain = 512;  // 8 lines carry a whole number of kChunkAlign elements of any type

/// A turn of the direct all-reduce; no slot bounds it.
inline constexpr size_t kDirectTileBytes = 64 * 1024;

struct WindowLayout {
  Placement placement;
  int num_channels = 1;
  size_t slot_bytes[kNumSlotPools] = {};   // by SlotPool; 0: the pool is not used (kPacket: never, see packet_offset)
  size_t packet_bytes = 0;                 // of one sender's packets of one operation; a multiple of kPacketGrain
  size_t direct_bytes = kDirectTileBytes;  // of an array that a rank reduces in place in one turn

  DCOMM_HOST_DEVICE constexpr size_t flag_offset(int channel, Flow flow, int from) const {
    const size_t row = static_cast<size_t>(channel) * kNumFlows + static_cast<size_t>(flow);
    return kControlBytes + (row * static_cast<size_t>(placement.world_size) + static_cast<size_t>(from)) * kFlagBytes;
  }
  /// parity: of the operation, so that a rank may write its next packets while a slow one still reads these.
  DCOMM_HOST_DEVICE constexpr size_t packet_offset(int channel, int parity, int from) const {
    const size_t row = static_cast<size_t>(channel) * 2 + static_cast<size_t>(parity);
    return packets_offset() +
           (row * static_cast<size_t>(placement.world_size) + static_cast<size_t>(from)) * packet_bytes;
  }
  DCOMM_HOST_DEVICE constexpr size_t slot_offset(int channel, const SlotRef& slot) const {
    const size_t index = static_cast<size_t>(channel) * static_cast<size_t>(placement.num_slots(slot.pool)) +
                         static_cast<size_t>(slot.index);
    return pool_offset(slot.pool) + index * slot_bytes[static_cast<size_t>(slot.pool)];
  }
  DCOMM_HOST_DEVICE constexpr size_t window_bytes() const {
    constexpr SlotPool kLast = SlotPool::kMessage;
    return round_up(pool_offset(kLast) + pool_bytes(kLast), kPageBytes);
  }

 private:
  DCOMM_HOST_DEVICE constexpr size_t packets_offset() const {
    const size_t num_flags = static_cast<size_t>(num_channels) * kNumFlows * static_cast<size_t>(placement.world_size);
    return kControlBytes + num_flags * kFlagBytes;
  }
  DCOMM_HOST_DEVICE constexpr size_t pool_bytes(SlotPool pool) const {
    return static_cast<size_t>(num_channels) * static_cast<size_t>(placement.num_slots(pool)) *
           slot_bytes[static_cast<size_t>(pool)];
  }
  DCOMM_HOST_DEVICE constexpr size_t pool_offset(SlotPool pool) const {
    const size_t packets = 2 * static_cast<size_t>(num_channels) * static_cast<size_t>(placement.world_size);
    size_t offset = round_up(packets_offset() + packets * packet_bytes, kPageBytes);
    for (int before = 0; before < static_cast<int>(pool) && before < kNumSlotPools; ++before)
      offset += pool_bytes(static_cast<SlotPool>(before));
    return offset;
  }
};

}  // namespace dcomm
