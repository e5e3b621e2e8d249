// All-gather: every rank ends with everyone's block, in rank order. Floor: algo (host and device).
//
// 1 step, (n-1) B bytes sent per rank for blocks of B bytes: the second half of two_shot, over swapped slots.
#pragma once

#include "algo/exchange.h"
#include "schedule/partition.h"

namespace dcomm {

/// in: plan.count elements; out: world_size blocks of them. in may be out's own block. plan: one chunk (a block).
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool all_gather(Exec& exec, const Kernels& kernels, const ChunkPlan& plan) {
  const int rank = exec.rank();
  const int world_size = exec.world_size();
  const int channel = exec.channel();
  return exchange_tiles(
      exec, plan.num_tiles(),
      [&](int, uint64_t tile, auto slot) { kernels.encode(exec, slot, plan.segment(0, channel, tile)); },
      [&](uint64_t tile, uint64_t seq) {
        const Range range = plan.segment(0, channel, tile);
        kernels.keep(exec, static_cast<size_t>(rank) * plan.count + range.offset, range);
        for (int i = 1; i < world_size; ++i) {
          const int peer = rank + i < world_size ? rank + i : rank + i - world_size;
          kernels.decode(exec, Range{static_cast<size_t>(peer) * plan.count + range.offset, range.count},
                         exec.inbox(Edge{peer, Flow::kExchange}, seq));
        }
      });
}

}  // namespace dcomm
