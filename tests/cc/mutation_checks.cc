// One small check for each rule of the protocol, each with the configuration in which that rule is what keeps the
// data right. tools/run_mutations.py breaks the rules one by one (base/mutation.h) and expects these to notice.
#include <string>

#include "check.h"
#include "collective_workload.h"
#include "verifier.h"

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

/// Back-to-back operations in which the last segment is shorter than the one whose slot it takes over.
void expect_collectives(GroupConfig config, Collective collective, Algo algo) {
  Random random(33);
  config.slot_bytes = config.fifo_slot_bytes = 256;  // 64 elements
  Workload workload(config.world_size);
  for (int i = 0; i < kNumOperations; ++i) {
    CollectiveCase what;
    what.collective = collective;
    what.what.algo = algo;
    what.count = 64 * 3 + 32 - static_cast<size_t>(i % 2);
    if (algo == Algo::kTree) what.count *= 2;
    add_collective(workload, random, what, config.world_size);
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

// And for whoever sends to a root.
CHECK_CASE(protocol_pair_credits) {
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const Collective collective : {Collective::kReduce, Collective::kGather, Collective::kScatter}) {
      expect_collectives(group(3, placement, 1), collective, Algo::kFlat);
    }
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

// The lanes have all written their slots before a rank signals its peers that they may read them.
CHECK_CASE(protocol_exchange_lanes) {
  expect_collectives(group(3, PlacementKind::kBounce, 2), Collective::kAllGather, Algo::kFlat);
  expect_collectives(group(3, PlacementKind::kPush, 2), Collective::kReduceScatter, Algo::kFlat);
}

// Swapped slots and the tree's, as two_shot's: all lanes have read what lies there before one of them writes.
CHECK_CASE(protocol_exchange_reuse) {
  expect_collectives(group(3, PlacementKind::kBounce, 2), Collective::kAllGather, Algo::kFlat);
}
CHECK_CASE(protocol_tree_reuse) {
  expect_collectives(group(4, PlacementKind::kBounce, 2), Collective::kAllReduce, Algo::kTree);
}

// One turn of look-ahead needs two slots in an exchange, too.
CHECK_CASE(protocol_two_exchange_slots) {
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    expect_collectives(group(3, placement, 1), Collective::kAllGather, Algo::kFlat);
    expect_collectives(group(3, placement, 1), Collective::kAllReduce, Algo::kOneShot);
  }
}

// Every pair of ranks agrees on who sends which chunk to whom, in every algorithm.
CHECK_CASE(protocol_schedules) {
  for (const Collective collective : {Collective::kReduceScatter, Collective::kAllGather}) {
    Scenario scenario;
    scenario.placement = {PlacementKind::kBounce, 5, 2};
    scenario.operations.assign(2, {collective, Algo::kDirect, 60});
    const std::string problem = verify(scenario, record(scenario), {});
    EXPECT_MSG(problem.empty(), problem);
  }
  for (const Algo algo : {Algo::kRing, Algo::kTwoShot, Algo::kOneShot, Algo::kTree, Algo::kDirect}) {
    Scenario scenario;
    scenario.placement = {PlacementKind::kBounce, 5, 2};
    scenario.operations.assign(2, {Collective::kAllReduce, algo, 300});
    const std::string problem = verify(scenario, record(scenario), {});
    EXPECT_MSG(problem.empty(), problem);
  }
}

// The elements that do not fill a pack are reduced as the others are.
CHECK_CASE(protocol_tails) {
  Random random(34);
  for (const Algo algo : {Algo::kRing, Algo::kTwoShot, Algo::kOneShot, Algo::kTree, Algo::kDirect}) {
    Workload workload(3);
    for (const size_t count : {1, 37, 999}) {
      workload.add_all_reduce(random, {DType::kF32, DType::kF32, ReduceOp::kSum, algo}, count);
    }
    const std::string problem = run_workload(group(3, PlacementKind::kBounce, 1), workload);
    EXPECT_MSG(problem.empty(), problem);
  }
}

// Packets: the lines of a message are not those of the one before, and a line of an earlier message is not this one's.
CHECK_CASE(protocol_packets) {
  for (const int num_lanes : {1, 2}) {
    Random random(35);
    GroupConfig config = group(3, PlacementKind::kBounce, num_lanes);
    config.packet_bytes = 4 * kPacketGrain;  // 32 lines: both lanes have some
    Workload workload(3);
    for (int i = 0; i < 40; ++i) {
      const size_t count = i % 4 == 3 ? 380 : 30 + static_cast<size_t>(i);
      workload.add_all_reduce(random, {DType::kF32, DType::kF32, ReduceOp::kSum, Algo::kOneShot}, count);
    }
    const std::string problem = run_workload(config, workload);
    EXPECT_MSG(problem.empty(), problem);
  }
}

// Others use a rank's array between its "ready" and their "done" only: what the rank does with it just before (the
// result of another operation) and just after (the input of the next one) does not meet them.
CHECK_CASE(protocol_direct_loans) {
  constexpr int kRanks = 3;
  constexpr size_t kCount = 1000;
  Random random(36);
  const ReduceCase what{DType::kI32, DType::kI32, ReduceOp::kSum};
  for (const int num_lanes : {1, 2}) {
    std::vector<Bytes> inputs;
    std::vector<GuardedArray> first, lent, last;
    for (int rank = 0; rank < kRanks; ++rank) {
      inputs.push_back(random_array(random, what.dtype, kCount));
      for (auto* arrays : {&first, &lent, &last}) arrays->emplace_back(inputs.back().size(), 0);
      first.back().fill(inputs.back());
    }
    std::vector<std::vector<RankCall>> calls;
    const auto add = [&](Algo algo, std::vector<GuardedArray>& from, std::vector<GuardedArray>& to) {
      std::vector<RankCall>& ranks = calls.emplace_back(kRanks);
      for (size_t rank = 0; rank < kRanks; ++rank) {
        ranks[rank].collective = Collective::kAllReduce;
        ranks[rank].algo = algo;
        ranks[rank].dtype = ranks[rank].wire = what.dtype;
        ranks[rank].count = kCount;
        ranks[rank].in = from[rank].data();
        ranks[rank].out = to[rank].data();
      }
      if (algo == Algo::kDirect) share_arrays(ranks);
    };
    for (int round = 0; round < kNumOperations; ++round) {
      add(Algo::kTwoShot, first, lent);
      add(Algo::kDirect, lent, lent);
      add(Algo::kTwoShot, lent, last);
    }
    Bytes expected = reference_all_reduce(what, inputs, kCount);
    for (int again = 0; again < 2; ++again) {
      expected = reference_all_reduce(what, std::vector<Bytes>(kRanks, expected), kCount);
    }
    ThreadRanks ranks(group(kRanks, PlacementKind::kBounce, num_lanes));
    for (const Outcome& outcome : ranks.run(calls)) EXPECT(outcome.failure.code == ErrorCode::kOk);
    for (const GuardedArray& result : last) EXPECT(result.copy() == expected);
  }
}

// The same where the others read a rank's input only: what the rank writes there before and after does not meet them.
// After it comes an all-to-all, in which a rank, before it hears from anybody, writes what another one has read.
CHECK_CASE(protocol_lent_inputs) {
  constexpr int kRanks = 3;
  constexpr size_t kBlock = 400;
  Random random(37);
  const DType dtype = DType::kI32;
  const size_t block_bytes = kBlock * dtype_bytes(dtype);
  for (const int num_lanes : {1, 2}) {
    std::vector<Bytes> inputs;
    std::vector<GuardedArray> first, lent, part, last;
    for (int rank = 0; rank < kRanks; ++rank) {
      inputs.push_back(random_array(random, dtype, kBlock * kRanks));
      for (auto* arrays : {&first, &lent, &last}) arrays->emplace_back(inputs.back().size(), 0);
      part.emplace_back(block_bytes, 0);
      first.back().fill(inputs.back());
    }
    std::vector<std::vector<RankCall>> calls;
    const auto add = [&](Collective collective, Algo algo, size_t count, std::vector<GuardedArray>& from,
                         std::vector<GuardedArray>& to) {
      std::vector<RankCall>& ranks = calls.emplace_back(kRanks);
      for (size_t rank = 0; rank < kRanks; ++rank) {
        ranks[rank].collective = collective;
        ranks[rank].algo = algo;
        ranks[rank].dtype = ranks[rank].wire = dtype;
        ranks[rank].count = count;
        ranks[rank].in = from[rank].data();
        ranks[rank].out = to[rank].data();
      }
      if (algo == Algo::kDirect) lend_inputs(ranks, 0);
    };
    for (int round = 0; round < 2 * kNumOperations; ++round) {
      add(Collective::kAllReduce, Algo::kTwoShot, kBlock * kRanks, first, lent);
      add(Collective::kReduceScatter, Algo::kDirect, kBlock, lent, part);
      add(Collective::kAllToAll, Algo::kFlat, kBlock / 2, first, lent);
      add(Collective::kAllGather, Algo::kDirect, kBlock, part, last);
    }
    const ReduceCase what{dtype, dtype, ReduceOp::kSum};
    const Bytes once = reference_all_reduce(what, inputs, kBlock * kRanks);
    const Bytes expected = reference_all_reduce(what, std::vector<Bytes>(kRanks, once), kBlock * kRanks);
    ThreadRanks ranks(group(kRanks, PlacementKind::kBounce, num_lanes));
    for (const Outcome& outcome : ranks.run(calls)) EXPECT(outcome.failure.code == ErrorCode::kOk);
    for (const GuardedArray& result : last) EXPECT(result.copy() == expected);
  }
}

// Where one rank's array is out of reach, all ranks notice, and go through the slots.
CHECK_CASE(protocol_lent_by_some) {
  GroupConfig config = group(3, PlacementKind::kBounce, 1);
  config.timeout_ns = 2'000'000'000;
  for (const Collective collective : {Collective::kReduceScatter, Collective::kAllGather}) {
    expect_collectives(config, collective, Algo::kAuto);
  }
}

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

// The store that publishes a slot is a release, and the load that waits for it an acquire. A full barrier for sleepers
// would hide that they are not.
CHECK_CASE(protocol_release_acquire) {
  for (const Algo algo : {Algo::kRing, Algo::kTwoShot}) {
    GroupConfig config = group(2, PlacementKind::kBounce, 1);
    config.policy = {0, 1'000'000'000, false};
    expect_all_reduces(config, algo);
  }
}

}  // namespace dcomm::checks
