#include "comm/selector.h"

namespace dcomm {

namespace {

constexpr TuningRow kTable[] = {
#include "comm/tuning_table.inc"
};

/// The measured world size to go by.
int nearest_world_size(int world_size, bool oversubscribed) {
  int least = 0;
  int best = 0;
  for (const TuningRow& row : kTable) {
    if (row.oversubscribed != oversubscribed) continue;
    if (least == 0 || row.world_size < least) least = row.world_size;
    if (row.world_size <= world_size && row.world_size > best) best = row.world_size;
  }
  return best != 0 ? best : least;
}

}  // namespace

AlgoSteps steps_for(int world_size, bool oversubscribed) {
  const int measured = nearest_world_size(world_size, oversubscribed);
  AlgoSteps found;
  int num_steps = 0;
  for (const TuningRow& row : kTable) {
    if (row.oversubscribed != oversubscribed || row.world_size != measured || num_steps == kMaxAlgoSteps) continue;
    AlgoStep& step = found.steps[num_steps++];
    step.algo = row.algo;
    step.max_bytes = row.max_bytes;
    if (!oversubscribed && world_size > measured && row.algo == Algo::kOneShot) {
      step.max_bytes = row.max_bytes * static_cast<uint64_t>(measured - 1) / static_cast<uint64_t>(world_size - 1);
    }
  }
  return found;
}

}  // namespace dcomm
