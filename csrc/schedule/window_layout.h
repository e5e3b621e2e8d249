// What lies where in a rank's window. Floor: schedule (pure integers; host and device).
//
//   [control page: header, records, abort] [flags: channel x flow x peer, 128 B each]
//   [slots: channel x slots_per_channel x slot_bytes] [fifo slots: channel x ... x fifo_slot_bytes]
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/macros.h"
#include "schedule/partition.h"
#include "schedule/placement.h"

namespace dcomm {

inline constexpr size_t kPageBytes = 4096;
inline constexpr size_t kFlagBytes = 128;  // two cache lines: prefetchers fetch pairs; a GPU line is 128 B
inline constexpr size_t kControlBytes = kPageBytes;

struct WindowLayout {
  Placement placement;
  int num_channels = 1;
  size_t slot_bytes = 0;
  size_t fifo_slot_bytes = 0;

  DCOMM_HOST_DEVICE constexpr size_t flag_offset(int channel, Flow flow, int from) const {
    const size_t row = static_cast<size_t>(channel) * kNumFlows + static_cast<size_t>(flow);
    return kControlBytes + (row * static_cast<size_t>(placement.world_size) + static_cast<size_t>(from)) * kFlagBytes;
  }
  DCOMM_HOST_DEVICE constexpr size_t slots_offset() const {
    const size_t num_flags = static_cast<size_t>(num_channels) * kNumFlows * static_cast<size_t>(placement.world_size);
    return round_up(kControlBytes + num_flags * kFlagBytes, kPageBytes);
  }
  DCOMM_HOST_DEVICE constexpr size_t fifo_offset() const {
    return slots_offset() +
           static_cast<size_t>(num_channels) * static_cast<size_t>(placement.slots_per_channel()) * slot_bytes;
  }
  DCOMM_HOST_DEVICE constexpr size_t slot_offset(int channel, const SlotRef& slot) const {
    if (slot.fifo) {
      const size_t index = static_cast<size_t>(channel) * static_cast<size_t>(placement.fifo_slots_per_channel()) +
                           static_cast<size_t>(slot.index);
      return fifo_offset() + index * fifo_slot_bytes;
    }
    const size_t index = static_cast<size_t>(channel) * static_cast<size_t>(placement.slots_per_channel()) +
                         static_cast<size_t>(slot.index);
    return slots_offset() + index * slot_bytes;
  }
  DCOMM_HOST_DEVICE constexpr size_t window_bytes() const {
    const size_t fifo_bytes =
        static_cast<size_t>(num_channels) * static_cast<size_t>(placement.fifo_slots_per_channel()) * fifo_slot_bytes;
    return round_up(fifo_offset() + fifo_bytes, kPageBytes);
  }
};

}  // namespace dcomm
