// Direct all-reduce: every rank reduces its chunk where the arrays lie. Floor: algo (host and device).
//
// For arrays that all ranks reach (comm/region.h); nothing is staged. For every rank r:
//   1 ready   my array may be read and written        n-1 messages without data
//   2 reduce  chunk r of all ranks' arrays is summed in canonical order (schedule/canonical.h), and the sum is written
//             to chunk r of all ranks' results
//   3 done    I am done with your arrays              n-1 messages without data
// 2 steps; S (n-1)/n bytes read from the peers' arrays and as many written to their results.
//
// Only rank r touches chunk r, so a result may lie over its input.
// Pulled: where the ranks reach the arrays but not the results of each other, step 2 is instead
//   2 reduce  all of the ranks' arrays is summed in canonical order into this rank's own result
// S (n-1) bytes read, none written elsewhere: no more than direct moves between 2 ranks, and more from 3 on. A result
// must not lie over its input, which the others still read.
//
// Source: the reduce-scatter and all-gather of two_shot with peers' memory in place of slots, as the two-stage
// all-reduce over registered buffers of vLLM and TensorRT-LLM; pulled: their one-stage one.
#pragma once

#include "algo/borrow.h"
#include "schedule/partition.h"

namespace dcomm {

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
