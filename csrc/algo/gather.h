// Gather: one rank ends with everyone's block, in rank order. Floor: algo (host and device).
//
// 1 step: everyone sends its block to the root. The senders may finish first: slots are reused under credits.
#pragma once

#include "protocol/exec.h"
#include "schedule/partition.h"

namespace dcomm {

/// in: plan.count elements; out (root only): world_size blocks of them. plan: one chunk (a block).
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool gather(Exec& exec, const Kernels& kernels, const ChunkPlan& plan, int root) {
  const int rank = exec.rank();
  const int world_size = exec.world_size();
  const uint64_t num_tiles = plan.num_tiles();
  if (rank != root) {
    const Edge edge{root, Flow::kPair};
    const uint64_t first = exec.load_counter(Counter::kPairOut, root);
    for (uint64_t tile = 0; tile < num_tiles; ++tile) {
      const auto to = exec.acquire(edge, first + tile);
      if (to == nullptr) return false;
      kernels.encode(exec, to, plan.segment(0, exec.channel(), tile));
      exec.publish(edge, first + tile);
    }
    exec.store_counter(Counter::kPairOut, first + num_tiles, root);
    return true;
  }
  for (uint64_t tile = 0; tile < num_tiles; ++tile) {
    const Range range = plan.segment(0, exec.channel(), tile);
    kernels.keep(exec, static_cast<size_t>(root) * plan.count + range.offset, range);
    for (int i = 1; i < world_size; ++i) {
      const Edge edge{(root + i) % world_size, Flow::kPair};
      const uint64_t seq = exec.load_counter(Counter::kPairIn, edge.peer) + tile;
      const auto from = exec.arrive(edge, seq);
      if (from == nullptr) return false;
      kernels.decode(exec, Range{static_cast<size_t>(edge.peer) * plan.count + range.offset, range.count}, from);
      exec.release(edge, seq);
    }
  }
  for (int i = 1; i < world_size; ++i) {
    const int peer = (root + i) % world_size;
    exec.store_counter(Counter::kPairIn, exec.load_counter(Counter::kPairIn, peer) + num_tiles, peer);
  }
  return true;
}

}  // namespace dcomm
