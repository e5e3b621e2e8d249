// Every schedule for every world size: verified symbolically, one thread playing all ranks. See verifier.h.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "comm/selector.h"
#include "random.h"
#include "sanitized.h"
#include "schedule/tree.h"
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

int random_rank(Random& random, int world_size) {
  return static_cast<int>(random.below(static_cast<uint64_t>(world_size)));
}

/// Every collective with every algorithm. The ring needs a neighbour, and a broadcast somebody who reads.
std::vector<Operation> all_operations(int world_size, size_t count) {
  std::vector<Operation> operations{
      {Collective::kAllReduce, Algo::kTwoShot, count}, {Collective::kAllReduce, Algo::kTree, count},
      {Collective::kAllReduce, Algo::kOneShot, count}, {Collective::kReduceScatter, Algo::kFlat, count},
      {Collective::kAllReduce, Algo::kDirect, count},  {Collective::kAllGather, Algo::kFlat, count},
      {Collective::kReduce, Algo::kFlat, count},       {Collective::kGather, Algo::kFlat, count},
      {Collective::kScatter, Algo::kFlat, count},      {Collective::kAllToAll, Algo::kFlat, count},
      {Collective::kBarrier, Algo::kFlat, 0},          {Collective::kReduceScatter, Algo::kDirect, count},
      {Collective::kAllGather, Algo::kDirect, count},  {Collective::kReduceScatter, Algo::kAuto, count},
      {Collective::kAllGather, Algo::kAuto, count},
  };
  if (world_size == 1) return operations;
  operations.push_back({Collective::kAllReduce, Algo::kRing, count});
  operations.push_back({Collective::kBroadcast, Algo::kFlat, count});
  return operations;
}

std::vector<size_t> random_lengths(Random& random, const Scenario& scenario) {
  const int n = scenario.placement.world_size;
  const size_t longest =
      kMaxTiles * scenario.slot_count(SlotPool::kPair) * static_cast<size_t>(scenario.num_channels) / 2;
  std::vector<size_t> lengths(static_cast<size_t>(n * n));
  for (size_t& length : lengths) length = random.below(3) == 0 ? random.below(3) : random.below(longest);
  return lengths;
}

/// Any operation; its count is one that takes at most kMaxTiles turns with the scenario's slots.
Operation random_operation(Random& random, const Scenario& scenario, size_t main_count) {
  const int n = scenario.placement.world_size;
  const std::vector<Operation> operations = all_operations(n, 0);
  Operation operation = operations[random.below(operations.size())];
  operation.root = random_rank(random, n);
  if (operation.collective == Collective::kBarrier) return operation;
  if (operation.collective == Collective::kAllToAll && random.coin()) {
    operation.lengths = random_lengths(random, scenario);
    return operation;
  }
  const std::vector<size_t> counts = counts_for(n);
  for (;;) {
    operation.count = random.coin() ? main_count : counts[random.below(counts.size())];
    Operation staged = operation;
    if (staged.algo == Algo::kAuto) staged.algo = Algo::kFlat;
    if (std::max(scenario.plan(operation).num_tiles(), scenario.plan(staged).num_tiles()) <= kMaxTiles)
      return operation;
  }
}

/// Every operation once with `count` elements, some more, in any order, and an all-to-all of uneven blocks.
Scenario make_scenario(Random& random, const Placement& placement, int num_channels, size_t count, size_t num_more,
                       size_t max_tiles) {
  Scenario scenario;
  scenario.placement = placement;
  scenario.num_channels = num_channels;
  const auto size_slots = [&](SlotPool pool, int num_chunks) {
    scenario.slot_count(pool) = slot_count_for(count, num_chunks, num_channels, 1 + random.below(max_tiles));
  };
  size_slots(SlotPool::kMain, random.coin() ? placement.world_size : std::min(2, placement.world_size));
  for (const SlotPool pool : {SlotPool::kFifo, SlotPool::kExchange, SlotPool::kPair}) size_slots(pool, 1);
  scenario.direct_count = slot_count_for(count, placement.world_size, num_channels, 1 + random.below(max_tiles));
  // The tree has but two chunks in the slots of two_shot and ring.
  while (scenario.plan({Collective::kAllReduce, Algo::kTree, count}).num_tiles() > 2 * kMaxTiles) {
    scenario.slot_count(SlotPool::kMain) *= 2;
  }
  scenario.slot_count(SlotPool::kPacket) =
      Scenario::kLineCount * (random.coin() ? 1 + random.below(8) : 1 + count / Scenario::kLineCount);
  scenario.operations = all_operations(placement.world_size, count);
  for (Operation& operation : scenario.operations) operation.root = random_rank(random, placement.world_size);
  scenario.operations.push_back({Collective::kAllReduce, Algo::kOneShot, count / 2 + 1});
  scenario.operations.push_back({Collective::kAllToAll, Algo::kFlat, 0, 0, random_lengths(random, scenario)});
  for (size_t i = 0; i < num_more; ++i) scenario.operations.push_back(random_operation(random, scenario, count));
  for (size_t i = scenario.operations.size() - 1; i > 0; --i) {
    std::swap(scenario.operations[i], scenario.operations[random.below(i + 1)]);
  }
  return scenario;
}

std::string describe(const Scenario& scenario) {
  const Placement& placement = scenario.placement;
  std::string text = placement.kind == PlacementKind::kPush ? "push" : "bounce";
  text += " n=" + std::to_string(placement.world_size) + " depth=" + std::to_string(placement.depth) +
          " channels=" + std::to_string(scenario.num_channels) + " slots=";
  for (const size_t count : scenario.slot_counts) text += std::to_string(count) + ",";
  text += " operations:";
  for (const Operation& operation : scenario.operations) {
    text += std::string(" ") + collective_name(operation.collective) + "/" + algo_name(operation.algo) + "/" +
            (operation.lengths.empty() ? std::to_string(operation.count) : "uneven") + "/root " +
            std::to_string(operation.root);
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

/// An operation of one turn, alone.
OperationTrace trace_alone(const Placement& placement, const Operation& operation) {
  Scenario scenario;
  scenario.placement = placement;
  scenario.slot_counts.fill(round_up(operation.count + 1, kChunkAlign));
  scenario.direct_count = scenario.slot_counts[0];
  scenario.slot_count(SlotPool::kPacket) = Scenario::kLineCount;
  scenario.operations = {operation};
  std::vector<OperationTrace> traces;
  const std::string problem = verify(scenario, record(scenario), {}, &traces);
  EXPECT_MSG(problem.empty(), problem + "; " + describe(scenario));
  return traces[0];
}

int floor_log2(int number) {
  int log = 0;
  while (number >> (log + 1) != 0) ++log;
  return log;
}

}  // namespace

CHECK_CASE(schedule_small_worlds) {
  Random random(1);
  const int last = kSanitized ? 4 : 8;
  for (int n = 1; n <= last; ++n) {
    for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
      for (const int depth : {2, 4}) {
        for (int channels = 1; channels <= 3; ++channels) {
          for (const size_t count : counts_for(n)) {
            const Scenario scenario = make_scenario(random, {kind, n, depth}, channels, count, 6, kMaxTiles);
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
  const int stride = kSanitized ? 18 : 1;
  for (int n = 9; n <= 64; n += stride) {
    const std::vector<size_t> counts = counts_for(n);
    for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
      const int depth = random.coin() ? 2 : 4;
      const int channels = 1 + static_cast<int>(random.below(3));
      const Scenario scenario =
          make_scenario(random, {kind, n, depth}, channels, counts[random.below(counts.size())], 2, 3);
      expect_verified(scenario, {{Order::kRandom, 0, random.next()}, {Order::kStarve, random_rank(random, n)}});
    }
  }
}

// Whoever hears nothing back runs many operations ahead of a slow rank, where roots change; its next operations that
// wait for all follow at once.
CHECK_CASE(schedule_ranks_run_ahead) {
  Random random(3);
  for (int n = 2; n <= (kSanitized ? 4 : 6); ++n) {
    for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
      for (const int depth : {2, 4}) {
        Scenario scenario;
        scenario.placement = {kind, n, depth};
        const std::vector<Operation> operations = all_operations(n, 0);
        for (int i = 0; i < 60; ++i) {
          constexpr Collective kOneWay[] = {Collective::kBroadcast, Collective::kReduce, Collective::kGather,
                                            Collective::kScatter};
          Operation operation{kOneWay[random.below(4)], Algo::kFlat};
          if (i % 6 == 0) operation = operations[random.below(operations.size())];
          operation.count = 1 + random.below(40);
          operation.root = random_rank(random, n);
          scenario.operations.push_back(operation);
        }
        std::vector<Order> orders;
        for (int rank = 0; rank < n; ++rank) orders.push_back({Order::kStarve, rank});
        expect_verified(scenario, orders);
      }
    }
  }
}

// The same, one operation over and over: a mixed sequence can hide that one alone reuses a slot too early.
CHECK_CASE(schedule_each_alone_again_and_again) {
  Random random(4);
  for (int n = 2; n <= (kSanitized ? 3 : 7); ++n) {
    for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
      for (const int depth : {2, 4}) {
        for (Operation operation : all_operations(n, 100)) {
          for (const size_t count : {size_t{10}, size_t{100}}) {  // one turn and several
            Scenario scenario;
            scenario.placement = {kind, n, depth};
            operation.count = count;
            for (int i = 0; i < 10; ++i) {
              scenario.operations.push_back(operation);
              scenario.operations.back().root = i < 5 ? n - 1 : random_rank(random, n);
            }
            std::vector<Order> orders{{Order::kRoundRobin}, {Order::kAscending}};
            for (int rank = 0; rank < n; ++rank) orders.push_back({Order::kStarve, rank});
            expect_verified(scenario, orders);
          }
        }
      }
    }
  }
}

// Both trees: one root, every other rank once among its parent's children, as deep as a balanced tree, and no rank
// that has children in both.
CHECK_CASE(schedule_trees_are_trees) {
  for (int n = 1; n <= 64; ++n) {
    std::vector<int> num_inner(static_cast<size_t>(n));
    for (int tree = 0; tree < kNumTrees; ++tree) {
      int num_roots = 0;
      int num_children = 0;
      for (int rank = 0; rank < n; ++rank) {
        const TreeNode node = tree_node(rank, n, tree);
        num_roots += node.parent < 0 ? 1 : 0;
        num_children += node.num_children();
        num_inner[static_cast<size_t>(rank)] += node.num_children() > 0 ? 1 : 0;
        if (node.num_children() > 0) EXPECT_EQ(tree_inner(rank), tree);
        EXPECT(node.children[0] >= 0 || node.children[1] < 0);  // the first one first
        for (int i = 0; i < node.num_children(); ++i) {
          EXPECT(node.children[i] >= 0 && node.children[i] < n);
          EXPECT_EQ(tree_node(node.children[i], n, tree).parent, rank);
        }
        if (node.num_children() == 2) EXPECT(node.children[0] != node.children[1]);
        int depth = 0;
        for (int up = rank; tree_node(up, n, tree).parent >= 0; up = tree_node(up, n, tree).parent) {
          ++depth;
          EXPECT(depth <= floor_log2(n));
        }
      }
      EXPECT_EQ(num_roots, 1);
      EXPECT_EQ(num_children, n - 1);
    }
    EXPECT(*std::max_element(num_inner.begin(), num_inner.end()) <= 1);
  }
}

// The table of the design page. Two algorithms with the same figures would be one algorithm with two names.
CHECK_CASE(schedule_costs_match_design) {
  for (int n = 2; n <= 16; ++n) {
    const auto num_ranks = static_cast<size_t>(n);
    const size_t count = 32 * num_ranks * 5;
    const size_t all = count * (num_ranks - 1);  // to everyone else
    const int root = n / 2;
    for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
      const auto cost = [&](Collective collective, Algo algo) {
        return trace_alone({kind, n, 2}, {collective, algo, count, root});
      };
      /// Every rank sends `others` elements, the root `of_root`.
      const auto expect_cost = [&](const OperationTrace& trace, int steps, size_t of_root, size_t others) {
        EXPECT_EQ(trace.steps, steps);
        for (int rank = 0; rank < n; ++rank) {
          EXPECT_EQ(trace.elements_sent[static_cast<size_t>(rank)], rank == root ? of_root : others);
        }
      };
      const size_t shares = 2 * all / num_ranks;
      expect_cost(cost(Collective::kAllReduce, Algo::kRing), 2 * (n - 1), shares, shares);
      expect_cost(cost(Collective::kAllReduce, Algo::kTwoShot), 2, shares, shares);
      expect_cost(cost(Collective::kAllReduce, Algo::kOneShot), 1, all, all);
      expect_cost(cost(Collective::kAllReduce, Algo::kDirect), 2, shares / 2, shares / 2);  // and reads as many
      expect_cost(cost(Collective::kReduceScatter, Algo::kFlat), 1, all, all);              // blocks of `count`
      expect_cost(cost(Collective::kAllGather, Algo::kFlat), 1, all, all);
      for (const Collective collective : {Collective::kReduceScatter, Collective::kAllGather}) {
        const OperationTrace direct = cost(collective, Algo::kDirect);
        expect_cost(direct, 2, 0, 0);
        EXPECT(direct.elements_fetched == std::vector<size_t>(num_ranks, all));
        expect_cost(cost(collective, Algo::kAuto), 3, all, all);  // asks first
      }
      expect_cost(cost(Collective::kAllToAll, Algo::kFlat), 1, all, all);
      expect_cost(cost(Collective::kBroadcast, Algo::kFlat), 1, all, 0);
      expect_cost(cost(Collective::kScatter, Algo::kFlat), 1, all, 0);
      expect_cost(cost(Collective::kReduce, Algo::kFlat), 1, 0, count);
      expect_cost(cost(Collective::kGather, Algo::kFlat), 1, 0, count);
      expect_cost(cost(Collective::kBarrier, Algo::kFlat), 1, 0, 0);

      const OperationTrace packets = trace_alone({kind, n, 2}, {Collective::kAllReduce, Algo::kOneShot, 12});
      expect_cost(packets, 1, 12 * (num_ranks - 1), 12 * (num_ranks - 1));
      const OperationTrace tree = cost(Collective::kAllReduce, Algo::kTree);
      EXPECT_EQ(tree.steps, 2 * floor_log2(n));
      size_t sent = 0;
      for (const size_t elements : tree.elements_sent) {
        EXPECT(elements <= 2 * count);
        sent += elements;
      }
      EXPECT_EQ(sent, 2 * all);
    }
  }
}

// With two ranks ring, two_shot and tree take two steps each; they still use their own flows, reach other peers, and
// sum in their own orders.
CHECK_CASE(schedule_algorithms_differ) {
  constexpr Algo kAlgos[] = {Algo::kRing, Algo::kTwoShot, Algo::kOneShot, Algo::kTree, Algo::kDirect};
  const std::set<Flow> wanted_flows[] = {{Flow::kRing},
                                         {Flow::kScatter, Flow::kGather},
                                         {Flow::kExchange},
                                         {Flow::kTreeUp, Flow::kTreeDown},
                                         {Flow::kDirect}};
  for (int n = 2; n <= 16; ++n) {
    Scenario scenario;
    scenario.placement = {PlacementKind::kBounce, n, 2};
    scenario.slot_counts.fill(1024);
    scenario.slot_count(SlotPool::kPacket) = Scenario::kLineCount;
    for (const Algo algo : kAlgos) scenario.operations.push_back({Collective::kAllReduce, algo, 1000});
    const Record programs = record(scenario);
    Expressions expressions;
    std::set<std::vector<int>> sums;
    for (size_t i = 0; i < std::size(kAlgos); ++i) {
      std::set<Flow> flows;
      size_t most_peers = 0;
      for (const Program& program : programs[0][i]) {
        std::set<int> peers;
        for (const Event& event : program.events) {
          if (event.kind != EventKind::kPublish) continue;
          flows.insert(event.flow);
          peers.insert(event.peer);
        }
        most_peers = std::max(most_peers, peers.size());
      }
      EXPECT(flows == wanted_flows[i]);
      const auto num_peers = static_cast<size_t>(n - 1);
      if (kAlgos[i] == Algo::kRing) EXPECT_EQ(most_peers, size_t{1});
      if (kAlgos[i] == Algo::kTree) EXPECT(most_peers <= std::min(num_peers, size_t{4}));
      if (is_canonical(kAlgos[i])) EXPECT_EQ(most_peers, num_peers);
      std::vector<int> order;
      for (const Output& part : expected_of(expressions, scenario, scenario.operations[i], 0)) {
        order.push_back(part.value.expression);
      }
      sums.insert(order);
    }
    // two_shot, one_shot and direct: one order, so that they give the same bits. Of two ranks a sum has but two orders.
    EXPECT_EQ(sums.size(), n == 2 ? size_t{2} : size_t{3});
  }
}

}  // namespace dcomm::checks
