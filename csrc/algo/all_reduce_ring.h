// Ring all-reduce: every chunk travels once around to be summed, once more to be handed out.
// Floor: algo (host and device).
//
// Per tile, for every rank r (schedule/ring.h says which chunk at which step):
//   1 start    my terms of chunk r-1 go to the next rank
//   2 reduce   n-2 times: take a partial sum from the previous rank, add my terms, pass it on
//   3 finish   chunk r comes home: add my terms, keep the result, pass it on
//   4 gather   n-2 times: keep a finished chunk and pass it on; keep the last one
// 2 (n-1) steps and 2 S (n-1)/n bytes sent per rank. Chunk c is summed in the order c+1, c+2, ..., c.
// Half-precision wires round the partial sum at every hop.
// Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 2009.
#pragma once

#include "base/failpoint.h"
#include "base/mutation.h"
#include "protocol/exec.h"
#include "schedule/partition.h"
#include "schedule/ring.h"

namespace dcomm {

template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool all_reduce_ring(Exec& exec, const Kernels& kernels, const ChunkPlan& plan) {
  const int rank = exec.rank();
  const int world_size = exec.world_size();
  const int num_steps = ring_num_steps(world_size);
  const Edge next{ring_next(rank, world_size), Flow::kRing};
  const Edge prev{ring_prev(rank, world_size), Flow::kRing};
  const uint64_t first = exec.load_counter(Counter::kRing);
  const uint64_t num_tiles = plan.num_tiles();

  for (uint64_t tile = 0; tile < num_tiles; ++tile) {
    const uint64_t hop = (first + tile) * static_cast<uint64_t>(num_steps);  // number of the tile's first message
    for (int step = 0; step < num_steps; ++step) {
      failpoint("ring_step");
      const uint64_t seq = hop + static_cast<uint64_t>(step);
      const int shift = mutated(Mutation::kRingWrongChunk) && step == 1 ? 1 : 0;
      const Range range = plan.segment(ring_send_chunk(rank, world_size, step + shift), exec.channel(), tile);
      const auto from = step == 0 ? nullptr : exec.arrive(prev, seq - 1);
      if (step != 0 && from == nullptr) return false;
      const auto to = exec.acquire(next, seq);
      if (to == nullptr) return false;

      if (step == 0) {
        kernels.encode(exec, to, range);
        exec.publish(next, seq);
        continue;
      }
      if (step < world_size - 1) {
        kernels.accumulate(exec, to, from, range);
      } else if (step == world_size - 1) {
        kernels.finish(exec, to, from, range);
      } else {
        kernels.forward(exec, to, from, range);
      }
      exec.publish_and_release(next, seq, prev, seq - 1);
    }
    const uint64_t last = hop + static_cast<uint64_t>(num_steps) - 1;
    const auto from = exec.arrive(prev, last);
    if (from == nullptr) return false;
    kernels.decode(exec, plan.segment(next.peer, exec.channel(), tile), from);
    exec.release(prev, last);
  }
  exec.store_counter(Counter::kRing, first + num_tiles);
  return true;
}

}  // namespace dcomm
