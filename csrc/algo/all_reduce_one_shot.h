// One-shot all-reduce: everyone sends everything to everyone, then sums for itself. Floor: algo (host and device).
//
// 1 step, (n-1) S bytes sent per rank; every rank computes the same canonical sum. Two protocols for two sizes:
//   packets  the data travels in the lines that carry its flags: on a host up to 48 bytes in one cache line, so that
//            a small message costs one line per peer and one wait. Two buffers by parity suffice: a rank sends
//            message m+2 after it has taken everyone's m+1, which was sent after that rank had taken m.
//   slots    segments are swapped as in exchange.h.
// Sources: the LL protocol of NCCL (data with flags); one-stage all-reduce kernels of vLLM and TensorRT-LLM.
#pragma once

#include "algo/exchange.h"
#include "schedule/partition.h"

namespace dcomm {

/// plan: one chunk (the whole message), cut into segments that fit a sender's packets.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool all_reduce_one_shot_packets(Exec& exec, const Kernels& kernels, const ChunkPlan& plan) {
  const uint64_t first = exec.load_counter(Counter::kPacket);
  const uint64_t num_tiles = plan.num_tiles();
  for (uint64_t tile = 0; tile < num_tiles; ++tile) {
    const Range range = plan.segment(0, exec.channel(), tile);
    exec.sync();  // all lanes have taken the message before: the next one tells the peers so
    kernels.put_packets(exec, first + tile, range);
    if (!kernels.reduce_packets(exec, first + tile, range)) return false;
  }
  exec.store_counter(Counter::kPacket, first + num_tiles);
  return true;
}

/// plan: one chunk (the whole message), cut into segments that fit an exchange slot.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool all_reduce_one_shot(Exec& exec, const Kernels& kernels, const ChunkPlan& plan) {
  const int channel = exec.channel();
  return exchange_tiles(
      exec, plan.num_tiles(),
      [&](int, uint64_t tile, auto slot) { kernels.encode(exec, slot, plan.segment(0, channel, tile)); },
      [&](uint64_t tile, uint64_t seq) {
        kernels.reduce_canonical(
            exec, plan.segment(0, channel, tile),
            [&](int peer) { return exec.inbox(Edge{peer, Flow::kExchange}, seq); }, NoOutputs{});
      });
}

}  // namespace dcomm
