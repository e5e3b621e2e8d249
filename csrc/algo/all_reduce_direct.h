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
// Pulled: where the ranks reach the arrays but not the results of each other, step 2 is instead
//   2 reduce  all of the ranks' arrays is summed in canonical order into this rank's own result
// S (n-1) bytes read, none written elsewhere: no more than direct moves between 2 ranks, and more from 3 on. A result
// must not lie over its input, which the others still read.
//
// Source: the reduce-scatter and all-gather of two_shot with peers' memory in place of slots, as the two-stage
// all-reduce over registered buffers of vLLM and TensorRT-LLM; pulled: their one-stage one.
#pragma once

#include "base/mutation.h"
#include "protocol/exec.h"
#include "schedule/partition.h"

namespace dcomm {

/// Steps 1 and 3 around `reduce`, in which peers' arrays may be used.
template <class Exec, class Reduce>
DCOMM_HOST_DEVICE bool borrow_arrays(Exec& exec, const Reduce& reduce) {
  const uint64_t ready = exec.load_counter(Counter::kDirect);
  const uint64_t done = ready + 1;
  exec.signal_all(Flow::kDirect, ready);
  if (!mutated(Mutation::kDirectNoReadyWait) && !exec.wait_all(Flow::kDirect, ready)) return false;
  reduce();
  exec.signal_all(Flow::kDirect, done);
  if (!mutated(Mutation::kDirectNoDoneWait) && !exec.wait_all(Flow::kDirect, done)) return false;
  exec.store_counter(Counter::kDirect, done + 1);
  return true;
}

/// plan: one chunk for each rank, cut into turns of a size that suits the caches.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool all_reduce_direct(Exec& exec, const Kernels& kernels, const ChunkPlan& plan) {
  return borrow_arrays(exec, [&] {
    const uint64_t num_tiles = plan.num_tiles();
    for (uint64_t tile = 0; tile < num_tiles; ++tile) {
      kernels.reduce_everywhere(exec, plan.segment(exec.rank(), exec.channel(), tile));
    }
  });
}

/// plan: one chunk, the whole array.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool all_reduce_pulled(Exec& exec, const Kernels& kernels, const ChunkPlan& plan) {
  return borrow_arrays(exec, [&] {
    const uint64_t num_tiles = plan.num_tiles();
    for (uint64_t tile = 0; tile < num_tiles; ++tile) {
      kernels.reduce_here(exec, plan.segment(0, exec.channel(), tile));
    }
  });
}

}  // namespace dcomm
