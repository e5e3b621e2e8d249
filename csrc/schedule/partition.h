// How a message is cut: chunks (one per rank), segments (what fits a slot), tiles (turns of a channel).
// Floor: schedule (pure integers; host and device).
//
//   message   |-------- chunk 0 --------|-------- chunk 1 --------| ...   world_size chunks
//   chunk     |seg 0|seg 1|seg 2|seg 3|                                   segment j belongs to
//   tile t of channel c handles segment t * num_channels + c of EVERY chunk.
//
// Chunk boundaries depend on (count, world_size) alone, never on channels or slots: the ring's order of
// summation is a function of the chunk, and must not change when the tuning does.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/macros.h"

namespace dcomm {

/// Chunks start at multiples of this many elements, so that 16-byte packs of any wire type lie in one chunk; where
/// blocks share a scale, at multiples of a block (block_layout.h).
inline constexpr size_t kChunkAlign = 16;

struct Range {
  size_t offset = 0;  // elements
  size_t count = 0;   // elements
};

DCOMM_HOST_DEVICE constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
DCOMM_HOST_DEVICE constexpr size_t round_up(size_t a, size_t multiple) { return ceil_div(a, multiple) * multiple; }
DCOMM_HOST_DEVICE constexpr size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

struct ChunkPlan {
  size_t count = 0;          // elements of the message
  size_t chunk_count = 0;    // elements of every chunk but the last ones
  size_t segment_count = 0;  // elements of every segment but a chunk's last
  int num_channels = 1;

  /// slot_count: how many wire elements a slot holds (a multiple of `align`).
  DCOMM_HOST_DEVICE static ChunkPlan make(size_t count, int num_chunks, size_t slot_count, int num_channels,
                                          size_t align = kChunkAlign) {
    ChunkPlan plan;
    plan.count = count;
    plan.chunk_count = round_up(ceil_div(count, static_cast<size_t>(num_chunks)), align);
    plan.num_channels = num_channels;
    // Equal segments: a last segment of a few elements would cost a whole turn.
    const size_t num_segments = plan.chunk_count == 0 ? 1 : ceil_div(plan.chunk_count, slot_count);
    plan.segment_count = round_up(ceil_div(plan.chunk_count, num_segments), align);
    return plan;
  }

  DCOMM_HOST_DEVICE Range chunk(int index) const {
    const size_t offset = min_size(count, static_cast<size_t>(index) * chunk_count);
    return {offset, min_size(chunk_count, count - offset)};
  }

  /// Turns that every channel takes; at least one, so that even an empty message synchronises all ranks.
  DCOMM_HOST_DEVICE uint64_t num_tiles() const {
    if (chunk_count == 0) return 1;
    return ceil_div(ceil_div(chunk_count, segment_count), static_cast<size_t>(num_channels));
  }

  /// The part of chunk `index` that `channel` handles in `tile`; may be empty.
  DCOMM_HOST_DEVICE Range segment(int index, int channel, uint64_t tile) const {
    const Range whole = chunk(index);
    const size_t number = static_cast<size_t>(tile) * static_cast<size_t>(num_channels) + static_cast<size_t>(channel);
    const size_t start = min_size(whole.count, number * segment_count);
    return {whole.offset + start, min_size(segment_count, whole.count - start)};
  }
};

}  // namespace dcomm
