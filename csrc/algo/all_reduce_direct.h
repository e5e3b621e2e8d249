// Direct all-reduce: every rank reduces its chunk where the arrays lie. Floor: algo (host and device).
//
// For arrays that all ranks reach (comm/region.h); nothing is staged. For every rank r:
//   1 ready   my array may be read and written        n-1 messages without data
//   2 reduce  chunk r of all ranks' arrays is summed in canonical order (schedule/canonical.h), and the sum is written
//             to chunk r of all ranks' results
//   3 done    I am done with your arrays              n-1 messages without data
// 2 steps; S (n-1)/n bytes read from the peers' arrays and as many written to their results.
//
// Only rank r touches chunk r, so a result may lie over its input. A rank's messages are numbered 2k (ready) and 2k+1
// (done) of operation k. It is at most two messages ahead of what a peer has yet to take: to send 2k+3 it needs the
// peer's 2k+2, sent after the peer had taken 2k+1.
// Source: the reduce-scatter and all-gather of two_shot with peers' memory in place of slots, as the two-stage
// all-reduce over registered buffers of vLLM and TensorRT-LLM.
#pragma once

#include "base/mutation.h"
#include "protocol/exec.h"
#include "schedule/partition.h"

namespace dcomm {

/// plan: one chunk for each rank, cut into turns of a size that suits the caches.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool all_reduce_direct(Exec& exec, const Kernels& kernels, const ChunkPlan& plan) {
  const uint64_t ready = exec.load_counter(Counter::kDirect);
  const uint64_t done = ready + 1;
  exec.signal_all(Flow::kDirect, ready);
  if (!mutated(Mutation::kDirectNoReadyWait) && !exec.wait_all(Flow::kDirect, ready)) return false;
  const uint64_t num_tiles = plan.num_tiles();
  for (uint64_t tile = 0; tile < num_tiles; ++tile) {
    kernels.reduce_everywhere(exec, plan.segment(exec.rank(), exec.channel(), tile));
  }
  exec.signal_all(Flow::kDirect, done);
  if (!mutated(Mutation::kDirectNoDoneWait) && !exec.wait_all(Flow::kDirect, done)) return false;
  exec.store_counter(Counter::kDirect, done + 1);
  return true;
}

}  // namespace dcomm
