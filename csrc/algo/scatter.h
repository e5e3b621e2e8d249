// Scatter: every rank ends with its block of the root's array. Floor: algo (host and device).
//
// 1 step: the root sends (n-1) blocks, one to each. It may finish before they have read: credits guard the slots.
#pragma once

#include "protocol/exec.h"
#include "schedule/partition.h"

namespace dcomm {

/// in (root only): world_size blocks of plan.count elements; out: plan.count. plan: one chunk (a block).
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool scatter(Exec& exec, const Kernels& kernels, const ChunkPlan& plan, int root) {
  const int rank = exec.rank();
  const int world_size = exec.world_size();
  const uint64_t num_tiles = plan.num_tiles();
  if (rank != root) {
    const Edge edge{root, Flow::kPair};
    const uint64_t first = exec.load_counter(Counter::kPairIn, root);
    for (uint64_t tile = 0; tile < num_tiles; ++tile) {
      const auto from = exec.arrive(edge, first + tile);
      if (from == nullptr) return false;
      kernels.decode(exec, plan.segment(0, exec.channel(), tile), from);
      exec.release(edge, first + tile);
    }
    exec.store_counter(Counter::kPairIn, first + num_tiles, root);
    return true;
  }
  for (uint64_t tile = 0; tile < num_tiles; ++tile) {
    const Range range = plan.segment(0, exec.channel(), tile);
    for (int i = 1; i < world_size; ++i) {
      const Edge edge{(root + i) % world_size, Flow::kPair};
      const uint64_t seq = exec.load_counter(Counter::kPairOut, edge.peer) + tile;
      const auto to = exec.acquire(edge, seq);
      if (to == nullptr) return false;
      kernels.encode(exec, to, Range{static_cast<size_t>(edge.peer) * plan.count + range.offset, range.count});
      exec.publish(edge, seq);
    }
    kernels.keep(exec, range.offset, Range{static_cast<size_t>(root) * plan.count + range.offset, range.count});
  }
  for (int i = 1; i < world_size; ++i) {
    const int peer = (root + i) % world_size;
    exec.store_counter(Counter::kPairOut, exec.load_counter(Counter::kPairOut, peer) + num_tiles, peer);
  }
  return true;
}

}  // namespace dcomm
