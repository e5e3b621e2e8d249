// Reduce: one rank ends with the sum. Floor: algo (host and device).
//
// 1 step: everyone sends S bytes to the root, which sums in canonical order. The senders may finish first: slots are
// reused under credits.
#pragma once

#include "protocol/exec.h"
#include "schedule/partition.h"

namespace dcomm {

/// plan: one chunk (the whole message), cut into segments that fit a pair slot.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool reduce(Exec& exec, const Kernels& kernels, const ChunkPlan& plan, int root) {
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
  const auto seq_of = [&](int peer, uint64_t tile) { return exec.load_counter(Counter::kPairIn, peer) + tile; };
  for (uint64_t tile = 0; tile < num_tiles; ++tile) {
    for (int i = 1; i < world_size; ++i) {
      const int peer = (root + i) % world_size;
      if (exec.arrive(Edge{peer, Flow::kPair}, seq_of(peer, tile)) == nullptr) return false;
    }
    kernels.reduce_canonical(
        exec, plan.segment(0, exec.channel(), tile),
        [&](int peer) { return exec.inbox(Edge{peer, Flow::kPair}, seq_of(peer, tile)); }, NoOutputs{});
    for (int i = 1; i < world_size; ++i) {
      const int peer = (root + i) % world_size;
      exec.release(Edge{peer, Flow::kPair}, seq_of(peer, tile));
    }
  }
  for (int i = 1; i < world_size; ++i) {
    const int peer = (root + i) % world_size;
    exec.store_counter(Counter::kPairIn, seq_of(peer, num_tiles), peer);
  }
  return true;
}

}  // namespace dcomm
