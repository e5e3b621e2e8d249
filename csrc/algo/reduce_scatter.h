// Reduce-scatter: rank r ends with the sum of everyone's block r. Floor: algo (host and device).
//
// 1 step, S (n-1)/n bytes sent per rank, in canonical order: the first half of two_shot, over swapped slots.
// Source: as all_reduce_two_shot.h.
#pragma once

#include "algo/exchange.h"
#include "schedule/partition.h"

namespace dcomm {

/// in: world_size blocks of plan.count elements; out: plan.count. plan: one chunk (a block).
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool reduce_scatter(Exec& exec, const Kernels& kernels, const ChunkPlan& plan) {
  const int channel = exec.channel();
  const auto block = [&](int rank, uint64_t tile) {
    const Range range = plan.segment(0, channel, tile);
    return Range{static_cast<size_t>(rank) * plan.count + range.offset, range.count};
  };
  const auto own_kernels = kernels.shifted_out(static_cast<size_t>(exec.rank()) * plan.count);
  return exchange_tiles(
      exec, plan.num_tiles(),
      [&](int peer, uint64_t tile, auto slot) { kernels.encode(exec, slot, block(peer, tile)); },
      [&](uint64_t tile, uint64_t seq) {
        own_kernels.reduce_canonical(
            exec, block(exec.rank(), tile), [&](int peer) { return exec.inbox(Edge{peer, Flow::kExchange}, seq); },
            NoOutputs{});
      });
}

}  // namespace dcomm
