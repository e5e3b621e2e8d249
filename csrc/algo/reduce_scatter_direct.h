// Direct reduce-scatter: every rank sums its block where the inputs lie. Floor: algo (host and device).
//
// For inputs in memory that all ranks reach (comm/region.h); nothing is staged, and only the input must lie there:
//   1 ready   my input may be read                                                   n-1 messages without data
//   2 reduce  block r of all ranks' inputs is summed in canonical order (schedule/canonical.h) into rank r's result
//   3 done    I am done with your inputs                                             n-1 messages without data
// 2 steps; S (n-1)/n bytes read from the peers, none sent. The bits are those of reduce_scatter.h. Only rank r reads
// block r, so its result may lie over its own one.
//
// Source: the first half of all_reduce_direct.h.
#pragma once

#include "algo/borrow.h"
#include "schedule/partition.h"

namespace dcomm {

/// in, out: as reduce_scatter. plan: one chunk (a block). staged(): the same through slots, where a rank's input is out
/// of reach.
template <class Exec, class Kernels, class Staged>
DCOMM_HOST_DEVICE bool reduce_scatter_direct(Exec& exec, const Kernels& kernels, const ChunkPlan& plan,
                                             const Staged& staged) {
  const size_t own_block = static_cast<size_t>(exec.rank()) * plan.count;
  const auto own_kernels = kernels.shifted_out(own_block);
  const auto reduce_all = [&] {
    const uint64_t num_tiles = plan.num_tiles();
    for (uint64_t tile = 0; tile < num_tiles; ++tile) {
      const Range range = plan.segment(0, exec.channel(), tile);
      own_kernels.reduce_here(exec, Range{own_block + range.offset, range.count});
    }
  };
  return borrow_arrays_or(exec, reduce_all, staged);
}

}  // namespace dcomm
