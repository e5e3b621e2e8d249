// The schedule verifier: records what every rank would do, replays it in several orders, checks the results.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "random.h"
#include "verifier_expected.h"
#include "verifier_replay.h"
#include "verifier_scenario.h"

namespace dcomm::checks {

/// In which order the one thread plays the ranks.
struct Order {
  enum Kind {
    kRoundRobin,  // one event each
    kAscending,   // each as far as it can, rank 0 first
    kDescending,  // ... the last rank first
    kRandom,      // any, for a few events
    kStarve,      // `rank` moves one event, and only when nobody else can
  };
  Kind kind = kRoundRobin;
  int rank = 0;
  uint64_t seed = 1;
};

namespace detail {

/// Plays `rank` for at most `budget` events; true when it moved.
inline bool play(Replay& replay, int rank, int budget) {
  bool moved = false;
  for (int i = 0; i < budget && replay.ok(); ++i) {
    if (replay.step(rank) != Replay::Step::kMoved) break;
    moved = true;
  }
  return moved;
}

inline void run(Replay& replay, const Order& order) {
  constexpr int kAll = 1 << 30;
  const int n = replay.world_size();
  Random random(order.seed);
  bool moved = true;
  while (moved && replay.ok()) {
    moved = false;
    const int start = order.kind == Order::kRandom ? static_cast<int>(random.below(static_cast<uint64_t>(n))) : 0;
    for (int i = 0; i < n; ++i) {
      int rank = (start + i) % n;
      int budget = kAll;
      if (order.kind == Order::kRoundRobin) budget = 1;
      if (order.kind == Order::kDescending) rank = n - 1 - i;
      if (order.kind == Order::kRandom) budget = 1 + static_cast<int>(random.below(40));
      if (order.kind == Order::kStarve && rank == order.rank) continue;
      moved = play(replay, rank, budget) || moved;
    }
    if (!moved && order.kind == Order::kStarve) moved = play(replay, order.rank, 1);
  }
  for (int rank = 0; rank < n && replay.ok(); ++rank) {
    if (replay.step(rank) == Replay::Step::kBlocked) replay.report_deadlock();
  }
  if (replay.ok()) replay.check_edges();
}

}  // namespace detail

/// Replays `programs` in `order`. Returns the first thing found wrong, or an empty string. traces: by operation.
inline std::string verify(const Scenario& scenario, const Record& programs, const Order& order,
                          std::vector<OperationTrace>* traces_out = nullptr) {
  const auto n = static_cast<size_t>(scenario.placement.world_size);
  Expressions expressions;
  std::vector<OperationTrace> traces(scenario.operations.size());
  for (OperationTrace& trace : traces) {
    trace.outputs.resize(n);
    trace.elements_sent.resize(n);
    trace.elements_fetched.resize(n);
  }
  for (const auto& channel : programs) {
    Replay replay(scenario.placement, scenario.slot_counts, expressions, channel, traces);
    detail::run(replay, order);
    if (!replay.ok()) return replay.report();
  }
  for (size_t i = 0; i < traces.size(); ++i) {
    for (int rank = 0; rank < scenario.placement.world_size; ++rank) {
      const Expected expected = expected_of(expressions, scenario, scenario.operations[i], rank);
      const std::string problem =
          detail::check_outputs(expressions, expected, traces[i].outputs[static_cast<size_t>(rank)]);
      if (!problem.empty()) {
        return "operation " + std::to_string(i) + " rank " + std::to_string(rank) + ": " + problem;
      }
    }
  }
  for (size_t i = 0; i < traces.size(); ++i) {
    const std::string problem = detail::check_aliases(scenario.operations[i], programs, i);
    if (!problem.empty()) return "operation " + std::to_string(i) + ": " + problem;
  }
  if (traces_out != nullptr) *traces_out = std::move(traces);
  return "";
}

}  // namespace dcomm::checks
