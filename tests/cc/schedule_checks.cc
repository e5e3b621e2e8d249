// Every schedule for every world size: verified symbolically, one thread playing all ranks. See verifier.h.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "random.h"
#include "sanitized.h"
#include "verifier.h"

namespace dcomm::checks {
namespace {

constexpr size_t kMaxTiles = 7;

std::vector<size_t> counts_for(int world_size) {
  const auto n = static_cast<size_t>(world_size);
  return {0, 1, n - 1, n, n + 1, 97, 7919, (size_t{1} << 20) + 3};
}

/// The slot size with which `count` elements take `tiles` turns of every channel (fewer where it is short).
size_t slot_count_for(size_t count, int num_chunks, int num_channels, size_t tiles) {
  const size_t chunk = ceil_div(count, static_cast<size_t>(num_chunks));
  return std::max(kChunkAlign, round_up(ceil_div(chunk, tiles * static_cast<size_t>(num_channels)), kChunkAlign));
}

/// Any operation; its count is one that takes at most kMaxTiles turns with the scenario's slots.
Operation random_operation(Random& random, const Scenario& scenario, size_t main_count) {
  const int n = scenario.placement.world_size;
  Operation operation;
  operation.root = static_cast<int>(random.below(static_cast<uint64_t>(n)));
  switch (random.below(8)) {
    case 0:
      return operation;
    case 1:
    case 2:
      operation.collective = Collective::kBroadcast;
      break;
    default:
      operation.collective = Collective::kAllReduce;
      operation.algo = random.coin() ? Algo::kRing : Algo::kTwoShot;
  }
  const std::vector<size_t> counts = counts_for(n);
  for (;;) {
    operation.count = random.coin() ? main_count : counts[random.below(counts.size())];
    if (scenario.plan(operation).num_tiles() <= kMaxTiles) return operation;
  }
}

Scenario make_scenario(Random& random, const Placement& placement, int num_channels, size_t count,
                       size_t num_operations, size_t max_tiles) {
  Scenario scenario;
  scenario.placement = placement;
  scenario.num_channels = num_channels;
  scenario.slot_count = slot_count_for(count, placement.world_size, num_channels, 1 + random.below(max_tiles));
  scenario.fifo_slot_count = slot_count_for(count, 1, num_channels, 1 + random.below(max_tiles));
  scenario.operations.push_back({Collective::kAllReduce, Algo::kRing, count, 0});
  scenario.operations.push_back({Collective::kAllReduce, Algo::kTwoShot, count, 0});
  while (scenario.operations.size() < num_operations) {
    scenario.operations.push_back(random_operation(random, scenario, count));
  }
  // Not always the same pair first.
  std::swap(scenario.operations[0], scenario.operations[random.below(num_operations)]);
  std::swap(scenario.operations[1], scenario.operations[random.below(num_operations)]);
  return scenario;
}

std::string describe(const Scenario& scenario) {
  const Placement& placement = scenario.placement;
  std::string text = placement.kind == PlacementKind::kPush ? "push" : "bounce";
  text += " n=" + std::to_string(placement.world_size) + " depth=" + std::to_string(placement.depth) +
          " channels=" + std::to_string(scenario.num_channels) + " slot=" + std::to_string(scenario.slot_count) +
          " fifo=" + std::to_string(scenario.fifo_slot_count) + " operations:";
  for (const Operation& operation : scenario.operations) {
    text += std::string(" ") + collective_name(operation.collective) + "/" + algo_name(operation.algo) + "/" +
            std::to_string(operation.count) + "/root " + std::to_string(operation.root);
  }
  return text;
}

void expect_verified(const Scenario& scenario, const std::vector<Order>& orders) {
  const Record programs = record(scenario);
  for (const Order& order : orders) {
    const std::string problem = verify(scenario, programs, order);
    EXPECT_MSG(problem.empty(), problem + "; order " + std::to_string(order.kind) + "; " + describe(scenario));
  }
}

int random_rank(Random& random, int world_size) {
  return static_cast<int>(random.below(static_cast<uint64_t>(world_size)));
}

/// A ring and a two_shot of one turn, a broadcast and a barrier, each alone.
OperationTrace trace_alone(const Placement& placement, const Operation& operation) {
  Scenario scenario;
  scenario.placement = placement;
  scenario.slot_count = scenario.fifo_slot_count = round_up(operation.count + 1, kChunkAlign);
  scenario.operations = {operation};
  std::vector<OperationTrace> traces;
  const std::string problem = verify(scenario, record(scenario), {}, &traces);
  EXPECT_MSG(problem.empty(), problem);
  return traces[0];
}

}  // namespace

CHECK_CASE(schedule_small_worlds) {
  Random random(1);
  const int last = kSanitized ? 5 : 8;
  for (int n = 2; n <= last; ++n) {
    for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
      for (const int depth : {2, 4}) {
        for (int channels = 1; channels <= 3; ++channels) {
          for (const size_t count : counts_for(n)) {
            const Scenario scenario = make_scenario(random, {kind, n, depth}, channels, count, 8, kMaxTiles);
            expect_verified(scenario, {{Order::kRoundRobin},
                                       {Order::kAscending},
                                       {Order::kDescending},
                                       {Order::kRandom, 0, random.next()},
                                       {Order::kStarve, random_rank(random, n)}});
          }
        }
      }
    }
  }
}

CHECK_CASE(schedule_large_worlds) {
  Random random(2);
  const int stride = kSanitized ? 11 : 1;
  for (int n = 9; n <= 64; n += stride) {
    const std::vector<size_t> counts = counts_for(n);
    for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
      const int depth = random.coin() ? 2 : 4;
      const int channels = 1 + static_cast<int>(random.below(3));
      const Scenario scenario =
          make_scenario(random, {kind, n, depth}, channels, counts[random.below(counts.size())], 5, 3);
      expect_verified(scenario, {{Order::kRandom, 0, random.next()}, {Order::kStarve, random_rank(random, n)}});
    }
  }
}

// Roots that change let a rank run many broadcasts ahead of a slow one; its next reductions follow at once.
CHECK_CASE(schedule_broadcasts_run_ahead) {
  Random random(3);
  for (int n = 2; n <= 6; ++n) {
    for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
      for (const int depth : {2, 4}) {
        Scenario scenario;
        scenario.placement = {kind, n, depth};
        for (int i = 0; i < 60; ++i) {
          Operation operation{Collective::kBroadcast, Algo::kFlat, 1 + random.below(40), random_rank(random, n)};
          if (i % 7 == 0) {
            operation.collective = Collective::kAllReduce;
            operation.algo = random.coin() ? Algo::kRing : Algo::kTwoShot;
          }
          if (i % 11 == 0) operation.collective = Collective::kBarrier;
          scenario.operations.push_back(operation);
        }
        std::vector<Order> orders;
        for (int rank = 0; rank < n; ++rank) orders.push_back({Order::kStarve, rank});
        expect_verified(scenario, orders);
      }
    }
  }
}

// The table of the design page. Two algorithms with the same figures would be one algorithm with two names.
CHECK_CASE(schedule_costs_match_design) {
  for (int n = 2; n <= 16; ++n) {
    const size_t count = 16 * static_cast<size_t>(n) * 5;
    const size_t sent = 2 * count / static_cast<size_t>(n) * static_cast<size_t>(n - 1);
    for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
      const Placement placement{kind, n, 2};
      const OperationTrace ring = trace_alone(placement, {Collective::kAllReduce, Algo::kRing, count, 0});
      const OperationTrace two_shot = trace_alone(placement, {Collective::kAllReduce, Algo::kTwoShot, count, 0});
      EXPECT_EQ(ring.steps, 2 * (n - 1));
      EXPECT_EQ(two_shot.steps, 2);
      for (int rank = 0; rank < n; ++rank) {
        EXPECT_EQ(ring.elements_sent[static_cast<size_t>(rank)], sent);
        EXPECT_EQ(two_shot.elements_sent[static_cast<size_t>(rank)], sent);
      }
      const OperationTrace broadcast = trace_alone(placement, {Collective::kBroadcast, Algo::kFlat, count, n / 2});
      EXPECT_EQ(broadcast.steps, 1);
      for (int rank = 0; rank < n; ++rank) {
        EXPECT_EQ(broadcast.elements_sent[static_cast<size_t>(rank)],
                  rank == n / 2 ? count * static_cast<size_t>(n - 1) : 0);
      }
      const OperationTrace barrier = trace_alone(placement, {Collective::kBarrier, Algo::kFlat, 0, 0});
      EXPECT_EQ(barrier.steps, 1);
      EXPECT_EQ(*std::max_element(barrier.elements_sent.begin(), barrier.elements_sent.end()), size_t{0});
    }
  }
}

// With two ranks both all-reduces take two steps; they still sum in their own orders and use their own flows.
CHECK_CASE(schedule_algorithms_differ) {
  for (int n = 2; n <= 16; ++n) {
    Scenario scenario;
    scenario.placement = {PlacementKind::kBounce, n, 2};
    scenario.operations = {{Collective::kAllReduce, Algo::kRing, 1000, 0},
                           {Collective::kAllReduce, Algo::kTwoShot, 1000, 0}};
    scenario.slot_count = 1024;
    const Record programs = record(scenario);
    std::set<Flow> flows[2];
    std::set<int> peers[2];
    for (size_t i = 0; i < 2; ++i) {
      for (const Event& event : programs[0][i][0].events) {
        if (event.kind != EventKind::kPublish) continue;
        flows[i].insert(event.flow);
        peers[i].insert(event.peer);
      }
    }
    EXPECT(flows[0] == std::set<Flow>{Flow::kRing});
    EXPECT((flows[1] == std::set<Flow>{Flow::kScatter, Flow::kGather}));
    EXPECT_EQ(peers[0].size(), size_t{1});
    EXPECT_EQ(peers[1].size(), static_cast<size_t>(n - 1));
  }
}

}  // namespace dcomm::checks
