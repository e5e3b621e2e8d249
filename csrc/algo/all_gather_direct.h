// Direct all-gather: every rank reads the others' blocks where they lie. Floor: algo (host and device).
//
// For blocks in memory that all ranks reach (comm/region.h); nothing is staged, and only the input must lie there:
//   1 ready   my block may be read                              n-1 messages without data
//   2 fetch   the peers' blocks are copied to this rank's result
//   3 done    I am done with your blocks                        n-1 messages without data
// 2 steps; (n-1) B bytes read from the peers for blocks of B bytes, none sent. The block may be its own part of the
// result: no peer reads anything else there, and this rank writes everything else.
//
// Source: the all-gather of all_gather.h with peers' memory in place of slots.
#pragma once

#include "algo/borrow.h"
#include "schedule/partition.h"

namespace dcomm {

/// in, out: as all_gather. plan: one chunk (a block). staged(): the same through slots, where a rank's block is out of
/// reach.
template <class Exec, class Kernels, class Staged>
DCOMM_HOST_DEVICE bool all_gather_direct(Exec& exec, const Kernels& kernels, const ChunkPlan& plan,
                                         const Staged& staged) {
  const int rank = exec.rank();
  const int world_size = exec.world_size();
  const auto fetch_all = [&] {
    const uint64_t num_tiles = plan.num_tiles();
    for (int i = 0; i < world_size; ++i) {  // no two ranks start with the same peer
      const int owner = rank + i < world_size ? rank + i : rank + i - world_size;
      for (uint64_t tile = 0; tile < num_tiles; ++tile) {
        const Range range = plan.segment(0, exec.channel(), tile);
        const size_t to = static_cast<size_t>(owner) * plan.count + range.offset;
        if (owner == rank) {
          kernels.keep(exec, to, range);
        } else {
          kernels.fetch(exec, to, owner, range);
        }
      }
    }
  };
  return borrow_arrays_or(exec, fetch_all, staged);
}

}  // namespace dcomm
