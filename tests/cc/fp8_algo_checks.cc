// All-reduces on fp8 wires: every rank's bits against fp8_reference.h, on host threads and on emulated blocks, whatever
// slots, channels and lanes; and the schedule.
#include <string>
#include <vector>

#include "check.h"
#include "verifier.h"
#include "workload.h"

namespace dcomm::checks {
namespace {

constexpr DType kWires[] = {DType::kF8Block32, DType::kF8Block128};
constexpr ReduceOp kOps[] = {ReduceOp::kSum, ReduceOp::kAvg};

void add(Workload& workload, Random& random, DType wire, ReduceOp op, size_t count, bool in_place = false,
         bool misaligned = false) {
  const ReduceCase what{DType::kF32, wire, op, Algo::kTwoShot};
  std::vector<Bytes> inputs;
  for (int rank = 0; rank < workload.world_size(); ++rank) inputs.push_back(random_array(random, what.dtype, count));
  // Of the first ten blocks of 128 one in two stays without inf and NaN, or nearly every block would have some.
  for (Bytes& input : inputs) {
    for (size_t i = 0; i < count; ++i) {
      float value = 0.0f;
      std::memcpy(&value, &input[i * 4], 4);
      if (!std::isfinite(value) && i / 128 % 2 == 0) value = 0.25f;
      std::memcpy(&input[i * 4], &value, 4);
    }
  }
  workload.add_all_reduce_of(random, what, inputs, fp8_all_reduce(what, inputs, count), count, in_place, misaligned);
}

void expect_runs(const GroupConfig& config, const Workload& workload) {
  const std::string problem = run_workload(config, workload);
  EXPECT_MSG(problem.empty(), problem);
}

}  // namespace

// Counts that are no multiples of anything, chunks that are empty, slots of one block.
CHECK_CASE(fp8_all_reduce_matches_reference) {
  Random random(81);
  for (const int n : {1, 2, 3, 4, 5, 8}) {
    for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
      GroupConfig config;
      config.world_size = n;
      config.placement = placement;
      config.num_lanes = n <= 4 ? 2 : 1;
      config.num_channels = n == 3 ? 2 : 1;
      config.slot_bytes = random.one_of({size_t{144}, size_t{256}, size_t{2080}, size_t{8192}});
      Workload workload(n);
      for (const DType wire : kWires) {
        for (const ReduceOp op : kOps) {
          for (const size_t count : {size_t{0}, size_t{1}, size_t{100}, size_t{129}, size_t{1024}, size_t{2900}}) {
            add(workload, random, wire, op, count, random.coin(), random.coin());
          }
        }
      }
      expect_runs(config, workload);
    }
  }
}

// Splits at multiples of a block leave every bit as it is; so do slots, channels and lanes.
CHECK_CASE(fp8_bits_ignore_slots_and_lanes) {
  for (const int n : {2, 3, 5}) {
    for (const size_t slot_bytes : {size_t{144}, size_t{1024}, size_t{65536}}) {
      for (const int lanes : {1, 3}) {
        Random random(82);  // the same data each time
        GroupConfig config;
        config.world_size = n;
        config.num_lanes = lanes;
        config.num_channels = lanes == 1 ? 1 : 2;
        config.slot_bytes = slot_bytes;
        Workload workload(n);
        for (const DType wire : kWires) add(workload, random, wire, ReduceOp::kAvg, 6001);
        expect_runs(config, workload);
      }
    }
  }
}

// Chunks and segments begin where blocks do, and fit their slots.
CHECK_CASE(fp8_schedules) {
  for (const DType wire : kWires) {
    const size_t block = block_count_of(wire);
    for (int n = 2; n <= 9; ++n) {
      for (const int channels : {1, 3}) {
        Scenario scenario;
        scenario.placement = {n % 2 == 0 ? PlacementKind::kBounce : PlacementKind::kPush, n, 2};
        scenario.num_channels = channels;
        scenario.slot_count(SlotPool::kMain) = 2 * block;
        for (const size_t count : {size_t{0}, size_t{1}, block, block * 7 + 5, size_t{3000}}) {
          Operation operation{Collective::kAllReduce, Algo::kTwoShot, count};
          operation.wire = wire;
          scenario.operations.push_back(operation);
          const ChunkPlan plan = scenario.plan(operation);
          EXPECT(plan.segment_count <= 2 * block);
          for (int chunk = 0; chunk < n; ++chunk) {
            EXPECT(plan.chunk(chunk).offset % block == 0 || plan.chunk(chunk).count == 0);
          }
          EXPECT_EQ(plan.segment_count % block, size_t{0});
        }
        const std::string problem = verify(scenario, record(scenario), {});
        EXPECT_MSG(problem.empty(), problem);
      }
    }
  }
}

// What tools/run_mutations.py breaks: n = 3 has chunks that do not end with a block of their own accord.
CHECK_CASE(protocol_fp8) {
  Random random(83);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    GroupConfig config;
    config.world_size = 3;
    config.placement = placement;
    config.num_lanes = 2;
    config.slot_bytes = 1088;
    Workload workload(3);
    for (const DType wire : kWires) {
      for (size_t i = 0; i < 4; ++i) add(workload, random, wire, kOps[i % 2], 3000 + 17 * i);
    }
    expect_runs(config, workload);
  }
}

}  // namespace dcomm::checks
