// Two-shot all-reduce: reduce-scatter, then all-gather, each in one step. Floor: algo (host and device).
//
// Per tile, for every rank r:
//   1 scatter  my terms of chunk p go to rank p                      n-1 messages of S/n
//   2 reduce   chunk r is summed in canonical order (schedule/canonical.h)
//   3 gather   the finished chunk r goes to everyone, theirs arrive  n-1 messages of S/n
// 2 steps and 2 S (n-1)/n bytes sent per rank. Terms of tile t+1 leave before tile t is reduced.
//
// Two slots per edge suffice and no credit is needed: a rank scatters tile t+2 only after it has tile t's
// results from every peer, each of which was sent after that peer had read tile t's terms; and a peer's
// gather slot is written again only after its terms of tile t+2 came, sent after it had read tile t.
// Source: Rabenseifner's reduce-scatter + all-gather (ICCS 2004), in the direct (all-to-all) form that
// custom all-reduce kernels use on fully connected nodes.
#pragma once

#include "base/failpoint.h"
#include "base/mutation.h"
#include "protocol/exec.h"
#include "schedule/partition.h"

namespace dcomm {

/// Peers in the order rank+1, rank+2, ...: no two ranks start with the same one.
DCOMM_HOST_DEVICE constexpr int two_shot_peer(int rank, int world_size, int i) {
  return rank + i < world_size ? rank + i : rank + i - world_size;
}

template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool all_reduce_two_shot(Exec& exec, const Kernels& kernels, const ChunkPlan& plan) {
  const int rank = exec.rank();
  const int world_size = exec.world_size();
  const int channel = exec.channel();
  const uint64_t first = exec.load_counter(Counter::kTwoShot);
  const uint64_t num_tiles = plan.num_tiles();

  for (uint64_t turn = 0; turn <= num_tiles; ++turn) {
    if (turn < num_tiles) {
      // Bounce: these slots held the results that this rank's lanes have just read, and a shorter tile is shared out
      // among the lanes differently.
      if (turn > 1 && !mutated(Mutation::kTwoShotNoReuseSync)) exec.sync();
      for (int i = 1; i < world_size; ++i) {
        const int peer = two_shot_peer(rank, world_size, i);
        kernels.encode(exec, exec.outbox(Edge{peer, Flow::kScatter}, first + turn), plan.segment(peer, channel, turn));
      }
      exec.signal_all(Flow::kScatter, first + turn);
    }
    if (turn == 0) continue;  // one tile of look-ahead

    const uint64_t tile = turn - 1;
    const uint64_t seq = first + tile;
    if (!exec.wait_all(Flow::kScatter, seq)) return false;
    failpoint("between_phases");
    kernels.reduce_canonical(
        exec, plan.segment(rank, channel, tile), [&](int peer) { return exec.inbox(Edge{peer, Flow::kScatter}, seq); },
        [&](int peer) { return exec.outbox(Edge{peer, Flow::kGather}, seq); });
    exec.signal_all(Flow::kGather, seq);

    if (!exec.wait_all(Flow::kGather, seq)) return false;
    for (int i = 1; i < world_size; ++i) {
      const int peer = two_shot_peer(rank, world_size, i);
      kernels.decode(exec, plan.segment(peer, channel, tile), exec.inbox(Edge{peer, Flow::kGather}, seq));
    }
  }
  exec.store_counter(Counter::kTwoShot, first + num_tiles);
  return true;
}

}  // namespace dcomm
