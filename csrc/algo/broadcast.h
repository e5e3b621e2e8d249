// Broadcast: the root fills a slot, everyone reads it. Floor: algo (host and device).
//
// 1 step. With the bounce placement S is written once and read by all; with push the root writes n-1 copies.
// The root may finish before its peers have read: slots are reused under credits.
#pragma once

#include "protocol/exec.h"
#include "schedule/partition.h"

namespace dcomm {

/// plan: one chunk (the whole message), cut into segments that fit a fifo slot.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool broadcast(Exec& exec, const Kernels& kernels, const ChunkPlan& plan, int root) {
  const int rank = exec.rank();
  const int world_size = exec.world_size();
  const uint64_t first = exec.load_counter(Counter::kFifo, root);
  const uint64_t num_tiles = plan.num_tiles();

  for (uint64_t tile = 0; tile < num_tiles; ++tile) {
    const uint64_t seq = first + tile;
    const Range range = plan.segment(0, exec.channel(), tile);
    if (rank != root) {
      const auto from = exec.arrive(Edge{root, Flow::kFifo}, seq);
      if (from == nullptr) return false;
      kernels.decode(exec, range, from);
      exec.release(Edge{root, Flow::kFifo}, seq);
      continue;
    }
    for (int i = 1; i < world_size; ++i) {  // all credits first: the slot may be shared by all edges
      if (exec.acquire(Edge{(root + i) % world_size, Flow::kFifo}, seq) == nullptr) return false;
    }
    for (int i = 1; i < world_size; ++i) {
      const auto to = exec.outbox(Edge{(root + i) % world_size, Flow::kFifo}, seq);
      if (i > 1 && to == exec.outbox(Edge{(root + 1) % world_size, Flow::kFifo}, seq)) break;
      kernels.encode(exec, to, range);
    }
    exec.signal_all(Flow::kFifo, seq);
  }
  exec.store_counter(Counter::kFifo, first + num_tiles, root);
  return true;
}

}  // namespace dcomm
