// Which algorithm an all-reduce takes where the caller leaves it open. Floor: comm.
//
// Rank 0 looks up the rows for its group in the measured table (tuning_table.inc) at init and sends them to all with
// the other settings; from then on the choice is local and pure: a function of the bytes on the wire.
#pragma once

#include <cstdint>

#include "protocol/control.h"

namespace dcomm {

/// Up to max_bytes on the wire: `algo`.
struct AlgoStep {
  uint64_t max_bytes = UINT64_MAX;
  Algo algo = Algo::kTwoShot;
  uint8_t unused[7] = {};
};
inline constexpr int kMaxAlgoSteps = 4;

/// By size, ascending; the last step in use has no bound.
struct AlgoSteps {
  AlgoStep steps[kMaxAlgoSteps];

  Algo choose(uint64_t nbytes) const {
    for (const AlgoStep& step : steps) {
      if (nbytes <= step.max_bytes) return step.algo;
    }
    return Algo::kTwoShot;
  }
};

/// One measured row: groups of `world_size` ranks. oversubscribed: on fewer CPUs than ranks.
struct TuningRow {
  int world_size;
  bool oversubscribed;
  uint64_t max_bytes;
  Algo algo;
};

/// The table's steps for a group: those of the measured world size that is nearest below, or the least one. A larger
/// group with a CPU for every rank could not be measured on two CPUs: there the bounds of one_shot, which sends n - 1
/// times as much, shrink by that factor.
AlgoSteps steps_for(int world_size, bool oversubscribed);

/// Whether the result depends on nothing but the ranks' elements: neither on the count nor on how a tensor is split.
constexpr bool is_canonical(Algo algo) {
  return algo == Algo::kOneShot || algo == Algo::kTwoShot || algo == Algo::kDirect;
}

}  // namespace dcomm
