// What lies where in a slot whose elements share scales by blocks. Floor: schedule (pure integers; host and device).
//
//   group   [16 scales][16 blocks of elements, one byte each]      a slot: group after group
//
// A group is 528 or 2064 bytes, so that packs of 16 bytes stay aligned, and a scale lies near its elements. Blocks are
// counted from the start of the message: chunks and segments begin at multiples of a block, so an element's block
// depends on nothing but its number, neither on ranks nor on slots, channels or lanes. A message's last block may be
// short; in a slot it takes a whole one.
#pragma once

#include "base/dtype.h"
#include "schedule/partition.h"

namespace dcomm {

inline constexpr size_t kGroupBlocks = 16;
static_assert(kChunkAlign % kGroupBlocks == 0, "lanes that share out blocks share out groups");

/// Elements that share a scale; 1: each is worth what it says.
DCOMM_HOST_DEVICE constexpr size_t block_count_of(DType wire) {
  return wire == DType::kF8Block32 ? 32 : wire == DType::kF8Block128 ? 128 : 1;
}

struct BlockLayout {
  size_t block_count = 32;

  DCOMM_ALWAYS_INLINE constexpr size_t group_count() const { return kGroupBlocks * block_count; }  // elements
  DCOMM_ALWAYS_INLINE constexpr size_t group_bytes() const { return kGroupBlocks + group_count(); }
  DCOMM_ALWAYS_INLINE constexpr size_t num_blocks(size_t count) const { return ceil_div(count, block_count); }

  // Bytes from the slot's start; block and element are counted there, too.
  DCOMM_ALWAYS_INLINE constexpr size_t scale_offset(size_t block) const {
    return block / kGroupBlocks * group_bytes() + block % kGroupBlocks;
  }
  DCOMM_ALWAYS_INLINE constexpr size_t element_offset(size_t element) const {
    return element / group_count() * group_bytes() + kGroupBlocks + element % group_count();
  }

  /// What `count` elements are on the wire: whole blocks and their scales.
  DCOMM_HOST_DEVICE constexpr size_t wire_bytes(size_t count) const { return num_blocks(count) * (block_count + 1); }
  /// Elements that a slot holds, in whole blocks.
  DCOMM_HOST_DEVICE constexpr size_t capacity(size_t slot_bytes) const {
    const size_t rest = slot_bytes % group_bytes();
    const size_t blocks = rest < kGroupBlocks ? 0 : (rest - kGroupBlocks) / block_count;
    return slot_bytes / group_bytes() * group_count() + blocks * block_count;
  }
};

/// What `count` elements are on the wire, in bytes.
DCOMM_HOST_DEVICE constexpr size_t wire_bytes(DType wire, size_t count) {
  return is_block_scaled(wire) ? BlockLayout{block_count_of(wire)}.wire_bytes(count) : count * dtype_bytes(wire);
}

/// Elements that a slot holds.
DCOMM_HOST_DEVICE constexpr size_t slot_capacity(DType wire, size_t slot_bytes) {
  return is_block_scaled(wire) ? BlockLayout{block_count_of(wire)}.capacity(slot_bytes)
                               : slot_bytes / dtype_bytes(wire);
}

/// Chunks and segments start at multiples of this many elements.
DCOMM_HOST_DEVICE constexpr size_t chunk_align_of(DType wire) {
  return is_block_scaled(wire) ? block_count_of(wire) : kChunkAlign;
}

}  // namespace dcomm
