// How an all-reduce is cut for a GPU. Floor: launch.
#pragma once

#include "schedule/partition.h"

namespace dcomm {

/// The least part of a chunk for a block: a 16-byte pack for each thread of one warp. The blocks are there anyway.
inline constexpr size_t kCudaMinSegmentBytes = 512;

/// Segments as large as a slot only where every channel gets one: a small message is spread over all channels.
/// Chunks, and with them every bit of the result, do not depend on this.
inline ChunkPlan cuda_plan(size_t count, int world_size, size_t wire_bytes, size_t slot_bytes, int num_channels) {
  const size_t chunk = ceil_div(count, static_cast<size_t>(world_size));
  const size_t share = round_up(ceil_div(chunk, static_cast<size_t>(num_channels)), kChunkAlign);
  const size_t least = kCudaMinSegmentBytes / wire_bytes;
  const size_t segment = share < least ? least : share;
  return ChunkPlan::make(count, world_size, min_size(segment, slot_bytes / wire_bytes), num_channels);
}

}  // namespace dcomm
