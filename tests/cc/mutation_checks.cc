// One small check for each rule of the protocol, each with the configuration in which that rule is what keeps the
// data right. tools/run_mutations.py breaks the rules one by one (base/mutation.h) and expects these to notice.
#include <string>

#include "check.h"
#include "workload.h"

namespace dcomm::checks {
namespace {

constexpr int kNumOperations = 6;

/// Back-to-back all-reduces of several turns each.
void expect_all_reduces(GroupConfig config, Algo algo) {
  Random random(31);
  config.slot_bytes = 192;  // 48 elements: the last segment is shorter in most operations
  Workload workload(config.world_size);
  for (int i = 0; i < kNumOperations; ++i) {
    const size_t count = 64 * 5 * static_cast<size_t>(config.world_size) - 17 * static_cast<size_t>(i);
    workload.add_all_reduce(random, {DType::kF32, DType::kF32, ReduceOp::kSum, algo}, count);
  }
  const std::string problem = run_workload(config, workload);
  EXPECT_MSG(problem.empty(), problem);
}

GroupConfig group(int world_size, PlacementKind placement, int num_lanes) {
  GroupConfig config;
  config.world_size = world_size;
  config.placement = placement;
  config.num_lanes = num_lanes;
  return config;
}

}  // namespace

// The ring's lanes have all written a slot before it is published.
CHECK_CASE(protocol_ring_lanes) {
  expect_all_reduces(group(3, PlacementKind::kBounce, 2), Algo::kRing);
  expect_all_reduces(group(3, PlacementKind::kPush, 2), Algo::kRing);
}

// Nothing but the credit proves a pushed slot free: with two slots and five ranks, the data that comes around the
// ring says nothing about the successor yet (with two ranks it does, and credits would be redundant).
CHECK_CASE(protocol_push_credits) { expect_all_reduces(group(5, PlacementKind::kPush, 1), Algo::kRing); }

// The same for a broadcast's root, which hears from its readers by credits only.
CHECK_CASE(protocol_fifo_credits) {
  Random random(32);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    GroupConfig config = group(3, placement, 1);
    config.fifo_slot_bytes = 256;
    Workload workload(3);
    for (int i = 0; i < kNumOperations; ++i) workload.add_broadcast(random, DType::kF32, 700, i % 2);
    const std::string problem = run_workload(config, workload);
    EXPECT_MSG(problem.empty(), problem);
  }
}

// The lanes of two_shot have all written their slots before any is published.
CHECK_CASE(protocol_two_shot_lanes) {
  expect_all_reduces(group(3, PlacementKind::kBounce, 2), Algo::kTwoShot);
  expect_all_reduces(group(3, PlacementKind::kPush, 2), Algo::kTwoShot);
}

// Before a slot is filled again, all lanes have read what a peer left there: the last segment of a chunk is shorter,
// so its slot is dealt out to the lanes in other shares.
CHECK_CASE(protocol_two_shot_reuse) { expect_all_reduces(group(3, PlacementKind::kBounce, 2), Algo::kTwoShot); }

// A wait is for this message, not for the one before it.
CHECK_CASE(protocol_epochs) {
  expect_all_reduces(group(3, PlacementKind::kBounce, 1), Algo::kTwoShot);
  expect_all_reduces(group(3, PlacementKind::kBounce, 1), Algo::kRing);
}

// One turn of look-ahead needs two slots.
CHECK_CASE(protocol_two_slots) {
  expect_all_reduces(group(3, PlacementKind::kBounce, 1), Algo::kTwoShot);
  expect_all_reduces(group(3, PlacementKind::kPush, 1), Algo::kTwoShot);
}

// The store that publishes a slot is a release. A full barrier for sleepers would hide that it is not.
CHECK_CASE(protocol_release_store) {
  for (const Algo algo : {Algo::kRing, Algo::kTwoShot}) {
    GroupConfig config = group(2, PlacementKind::kBounce, 1);
    config.policy = {0, 1'000'000'000, false};
    expect_all_reduces(config, algo);
  }
}

}  // namespace dcomm::checks
