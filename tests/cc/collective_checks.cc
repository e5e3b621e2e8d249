// Every collective and algorithm with real data on real threads, bit for bit against its definition.
#include <iterator>
#include <string>
#include <vector>

#include "check.h"
#include "collective_workload.h"

namespace dcomm::checks {
namespace {

// Lanes poll while they wait for each other: with many more threads than cores little else gets done.
constexpr int kMaxThreads = kSanitized ? 16 : 24;

constexpr ReduceCase kTypes[] = {
    {DType::kF32, DType::kF32, ReduceOp::kSum}, {DType::kF32, DType::kF32, ReduceOp::kAvg},
    {DType::kF32, DType::kF16, ReduceOp::kAvg}, {DType::kF32, DType::kBF16, ReduceOp::kSum},
    {DType::kF16, DType::kF16, ReduceOp::kAvg}, {DType::kBF16, DType::kBF16, ReduceOp::kSum},
    {DType::kF64, DType::kF64, ReduceOp::kAvg}, {DType::kI32, DType::kI32, ReduceOp::kSum},
    {DType::kI64, DType::kI64, ReduceOp::kSum},
};
constexpr size_t kNumTypes = std::size(kTypes);

struct Way {
  Collective collective;
  Algo algo;
};
constexpr Way kWays[] = {
    {Collective::kAllReduce, Algo::kOneShot}, {Collective::kAllReduce, Algo::kTree},
    {Collective::kAllReduce, Algo::kTwoShot}, {Collective::kAllReduce, Algo::kRing},
    {Collective::kAllReduce, Algo::kDirect},  {Collective::kReduceScatter, Algo::kFlat},
    {Collective::kAllGather, Algo::kFlat},    {Collective::kReduceScatter, Algo::kDirect},
    {Collective::kAllGather, Algo::kDirect},  {Collective::kReduceScatter, Algo::kAuto},
    {Collective::kAllGather, Algo::kAuto},    {Collective::kReduce, Algo::kFlat},
    {Collective::kGather, Algo::kFlat},       {Collective::kScatter, Algo::kFlat},
    {Collective::kAllToAll, Algo::kFlat},     {Collective::kBroadcast, Algo::kFlat},
    {Collective::kBarrier, Algo::kFlat},
};

CollectiveCase case_of(Random& random, const Way& way, size_t type, size_t count, int world_size) {
  CollectiveCase what;
  what.collective = way.collective;
  what.what = kTypes[type % kNumTypes];
  what.what.algo = way.algo;
  if (way.algo == Algo::kDirect || way.algo == Algo::kAuto) what.what.wire = what.what.dtype;
  what.count = count;
  what.root = static_cast<int>(random.below(static_cast<uint64_t>(world_size)));
  what.in_place = random.coin();
  what.misaligned = random.coin();
  return what;
}

size_t random_count(Random& random, int world_size) {
  const auto n = static_cast<uint64_t>(world_size);
  switch (random.below(6)) {
    case 0:
      return random.below(2);
    case 1:
      return n - 1 + random.below(3);
    case 2:
      return 16 * random.below(20);
    default:
      return 1 + random.below(kSanitized ? 400 : 1500);
  }
}

std::vector<size_t> random_lengths(Random& random, int world_size) {
  std::vector<size_t> lengths(static_cast<size_t>(world_size * world_size));
  for (size_t& length : lengths) length = random.below(3) == 0 ? 0 : random_count(random, world_size);
  return lengths;
}

GroupConfig random_group(Random& random, int world_size, PlacementKind placement) {
  GroupConfig config;
  config.world_size = world_size;
  config.placement = placement;
  config.depth = random.one_of({2, 2, 4});
  config.slot_bytes = 128 * (1 + random.below(8));
  config.fifo_slot_bytes = 128 * (1 + random.below(8));
  config.packet_bytes = kPacketGrain * random.one_of({1, 4, 16});
  config.policy = {0, 0, true};  // sleeps at once: beside busy processes every yield costs a time slice
  return config;
}

void expect_runs(const GroupConfig& config, const Workload& workload) {
  const std::string problem = run_workload(config, workload);
  EXPECT_MSG(problem.empty(), problem);
}

ReduceCase mean_of(DType wire, Algo algo) { return {DType::kF32, wire, ReduceOp::kAvg, algo}; }

/// All of them, all-reduced piece by piece; the result of rank 0, after a comparison of every rank with `expected`.
Bytes all_reduced(const GroupConfig& config, const ReduceCase& what, const std::vector<Bytes>& inputs,
                  const Bytes& expected, const std::vector<size_t>& counts) {
  Random random(17);
  Workload workload(config.world_size);
  const size_t width = dtype_bytes(what.dtype);
  size_t offset = 0;
  for (const size_t count : counts) {
    std::vector<Bytes> pieces;
    for (const Bytes& input : inputs) pieces.push_back(detail::slice(input, offset * width, count * width));
    workload.add_all_reduce_of(random, what, pieces, detail::slice(expected, offset * width, count * width), count,
                               false, true);
    offset += count;
  }
  expect_runs(config, workload);
  Bytes result;
  for (size_t i = 0; i < counts.size(); ++i) detail::append(result, workload.result(i, 0));
  return result;
}

}  // namespace

// All of them back to back, at every number of lanes and channels; each type comes to each of them.
CHECK_CASE(collective_every_way) {
  Random random(41);
  size_t type = 0;
  for (const int n : {2, 3, 4, 5, 8}) {
    for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
      for (int lanes = 1; lanes <= 2; ++lanes) {
        for (int channels = 1; channels <= 3; ++channels) {
          if (n * lanes * channels > kMaxThreads) continue;
          GroupConfig config = random_group(random, n, placement);
          config.num_lanes = lanes;
          config.num_channels = channels;
          Workload workload(n);
          for (const Way& way : kWays) {
            for (const size_t count : {size_t{0}, size_t{1}, static_cast<size_t>(n) + 1, size_t{331}}) {
              if (lanes > 1 && count <= 1) continue;  // there is nothing to share out
              add_collective(workload, random, case_of(random, way, type++, count, n), n);
            }
          }
          expect_runs(config, workload);
        }
      }
    }
  }
}

// Any sequence on any group, without a pause between the operations.
CHECK_CASE(collective_random_sequences) {
  Random random(42);
  const int num_groups = kSanitized ? 24 : 150;
  for (int i = 0; i < num_groups; ++i) {
    const int n = 2 + i % (kSanitized ? 4 : 7);
    GroupConfig config = random_group(random, n, random.coin() ? PlacementKind::kBounce : PlacementKind::kPush);
    config.num_lanes = random.one_of({1, 2, 2});
    config.num_channels = random.one_of({1, 1, 2, 3});
    if (n * config.num_lanes * config.num_channels > kMaxThreads) config.num_channels = 1;
    Workload workload(n);
    for (int operation = 0; operation < 12; ++operation) {
      CollectiveCase what =
          case_of(random, kWays[random.below(std::size(kWays))], random.next(), random_count(random, n), n);
      if (what.collective == Collective::kAllToAll && random.coin()) what.lengths = random_lengths(random, n);
      add_collective(workload, random, what, n);
    }
    expect_runs(config, workload);
  }
}

// A rank that hears nothing back runs ahead of the others, as far as its slots go; roots change.
CHECK_CASE(collective_one_way_runs_ahead) {
  Random random(43);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const int n : {2, 3, 5}) {
      GroupConfig config = random_group(random, n, placement);
      config.slot_bytes = config.fifo_slot_bytes = 128;
      Workload workload(n);
      for (int i = 0; i < (kSanitized ? 20 : 60); ++i) {
        const Way way{
            random.one_of({Collective::kReduce, Collective::kGather, Collective::kScatter, Collective::kBroadcast}),
            Algo::kFlat};
        add_collective(workload, random, case_of(random, way, random.next(), random.below(120), n), n);
      }
      expect_runs(config, workload);
    }
  }
}

// A message of all sizes around what a line and a sender's packets hold, shared out to one lane or several.
CHECK_CASE(collective_packets_of_every_size) {
  Random random(44);
  for (const int n : {2, 3, 5}) {
    for (const int lanes : {1, 2, 3}) {
      GroupConfig config;
      config.world_size = n;
      config.num_lanes = lanes;
      config.packet_bytes = 8 * kPacketGrain;  // 64 lines: several lanes have some
      Workload workload(n);
      for (const size_t count : {0, 1, 11, 12, 13, 24, 191, 192, 193, 200, 767, 768, 769, 1000, 12, 700, 0, 400}) {
        const CollectiveCase what = case_of(random, {Collective::kAllReduce, Algo::kOneShot}, random.next(), count, n);
        add_collective(workload, random, what, n);
      }
      expect_runs(config, workload);
    }
  }
}

// One result: one_shot's is two_shot's, whatever the splits, channels, slots and packets.
CHECK_CASE(collective_one_shot_bits_are_two_shot_bits) {
  Random random(45);
  const size_t count = kSanitized ? 901 : 3001;
  for (const int n : {2, 3, 4, 5, 8}) {
    for (const DType wire : {DType::kF32, DType::kBF16}) {
      std::vector<Bytes> inputs;
      for (int rank = 0; rank < n; ++rank) inputs.push_back(random_array(random, DType::kF32, count));
      const Bytes expected = reference_all_reduce(mean_of(wire, Algo::kTwoShot), inputs, count);
      GroupConfig config;
      config.world_size = n;
      const Bytes two_shot = all_reduced(config, mean_of(wire, Algo::kTwoShot), inputs, expected, {count});
      for (const int channels : {1, 3}) {
        for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
          config = random_group(random, n, placement);
          config.num_channels = channels;
          const ReduceCase one_shot = mean_of(wire, Algo::kOneShot);
          EXPECT(all_reduced(config, one_shot, inputs, expected, {count}) == two_shot);
          EXPECT(all_reduced(config, one_shot, inputs, expected, {1, 300, 7, count - 408, 100}) == two_shot);
        }
      }
    }
  }
}

// The tree's sums are its own, one for each count, whatever the channels and slots.
CHECK_CASE(collective_tree_bits_depend_on_the_count_alone) {
  Random random(46);
  const size_t count = 901;
  for (const int n : {3, 4, 5, 8}) {
    std::vector<Bytes> inputs;
    for (int rank = 0; rank < n; ++rank) inputs.push_back(random_array(random, DType::kF32, count));
    const ReduceCase tree = mean_of(DType::kF32, Algo::kTree);
    const Bytes expected = reference_all_reduce(tree, inputs, count);
    for (const int channels : {1, 2, 3}) {
      for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
        GroupConfig config = random_group(random, n, placement);
        config.num_channels = channels;
        EXPECT(all_reduced(config, tree, inputs, expected, {count}) == expected);
      }
    }
    for (const Algo other : {Algo::kTwoShot, Algo::kRing}) {
      EXPECT(reference_all_reduce(mean_of(DType::kF32, other), inputs, count) != expected);
    }
  }
}

// A shorter last segment is dealt out to the lanes in other shares than the one whose slot it takes over.
CHECK_CASE(collective_uneven_lanes) {
  Random random(47);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const int lanes : {2, 3}) {
      GroupConfig config;
      config.world_size = 3;
      config.placement = placement;
      config.num_lanes = lanes;
      config.slot_bytes = config.fifo_slot_bytes = 64 * 4;
      Workload workload(3);
      for (const Way& way : kWays) {
        for (const size_t chunk : {size_t{64 * 2 + 32}, size_t{64 * 3 + 16}}) {
          CollectiveCase what = case_of(random, way, 0, chunk, 3);
          if (way.algo == Algo::kTree) what.count *= 2;
          add_collective(workload, random, what, 3);
        }
      }
      expect_runs(config, workload);
    }
  }
}

// In a group of one nothing travels, and the result is what the collective says: rounded, averaged, moved.
CHECK_CASE(collective_alone) {
  Random random(48);
  for (const Way& way : kWays) {
    if (way.algo == Algo::kRing || way.collective == Collective::kBarrier) continue;
    for (size_t type = 0; type < kNumTypes; ++type) {
      CollectiveCase what = case_of(random, way, type, 77, 1);
      what.in_place = type % 2 == 0;
      Workload workload(1);
      add_collective(workload, random, what, 1);
      run_alone(workload.calls()[0][0], *select_kernel_table(nullptr));
      EXPECT_EQ(workload.problem(), std::string());
    }
  }
}

}  // namespace dcomm::checks
