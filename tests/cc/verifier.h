// The schedule verifier: records what every rank would do, replays it in several orders, checks the results.
//
// A Scenario is a list of operations on the same windows, one after the other without any pause between them:
// slots and flags are reused across operations, which is where mistakes hide.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "algo/all_reduce_ring.h"
#include "algo/all_reduce_two_shot.h"
#include "algo/barrier.h"
#include "algo/broadcast.h"
#include "random.h"
#include "verifier_replay.h"

namespace dcomm::checks {

struct Operation {
  Collective collective = Collective::kBarrier;
  Algo algo = Algo::kFlat;
  size_t count = 0;
  int root = 0;
};

struct Scenario {
  Placement placement;
  int num_channels = 1;
  size_t slot_count = 16;       // elements in a slot
  size_t fifo_slot_count = 16;  // elements in a fifo slot
  std::vector<Operation> operations;

  ChunkPlan plan(const Operation& operation) const {
    if (operation.collective == Collective::kBroadcast) {
      return ChunkPlan::make(operation.count, 1, fifo_slot_count, num_channels);
    }
    return ChunkPlan::make(operation.count, placement.world_size, slot_count, num_channels);
  }
};

/// [channel][operation][rank]
using Record = std::vector<std::vector<std::vector<Program>>>;

inline Record record(const Scenario& scenario) {
  const auto n = static_cast<size_t>(scenario.placement.world_size);
  Record result;
  for (int channel = 0; channel < scenario.num_channels; ++channel) {
    std::vector<std::vector<Program>> programs(scenario.operations.size(), std::vector<Program>(n));
    for (int rank = 0; rank < scenario.placement.world_size; ++rank) {
      RecordExec exec(scenario.placement, rank, channel);
      for (size_t i = 0; i < scenario.operations.size(); ++i) {
        const Operation& operation = scenario.operations[i];
        const ChunkPlan plan = scenario.plan(operation);
        switch (operation.collective) {
          case Collective::kBarrier:
            barrier(exec);
            break;
          case Collective::kBroadcast:
            broadcast(exec, RecordKernels{}, plan, operation.root);
            break;
          case Collective::kAllReduce:
            if (operation.algo == Algo::kRing) {
              all_reduce_ring(exec, RecordKernels{}, plan);
            } else {
              all_reduce_two_shot(exec, RecordKernels{}, plan);
            }
            break;
          default:
            break;
        }
        programs[i][static_cast<size_t>(rank)] = exec.take();
      }
    }
    result.push_back(std::move(programs));
  }
  return result;
}

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

/// What every rank must have in the end, by element.
struct Expected {
  std::vector<int> expressions;  // by chunk of the ring, else a single one
  size_t chunk_count = 0;

  Expected(Expressions& pool, const Scenario& scenario, const Operation& operation) {
    const int n = scenario.placement.world_size;
    if (operation.collective == Collective::kBroadcast) {
      expressions.push_back(pool.input(operation.root));
      return;
    }
    if (operation.algo != Algo::kRing) {
      std::vector<int> terms;
      for (int rank = 0; rank < n; ++rank) terms.push_back(pool.input(rank));
      expressions.push_back(pool.tree(terms, 0, terms.size()));
      return;
    }
    const auto num_chunks = static_cast<size_t>(n);
    chunk_count = ((operation.count + num_chunks - 1) / num_chunks + 15) / 16 * 16;
    for (int chunk = 0; chunk < n; ++chunk) {  // chunk c in the order c+1, ..., c
      int sum = pool.input((chunk + 1) % n);
      for (int i = 2; i <= n; ++i) sum = pool.add(sum, pool.input((chunk + i) % n));
      expressions.push_back(sum);
    }
  }
  int at(size_t element) const { return expressions[chunk_count == 0 ? 0 : element / chunk_count]; }
};

/// Every element of the result exactly once, and right at both ends of each part (a part has one expression).
inline std::string check_outputs(const Expressions& pool, const Expected& expected, std::vector<Output>& outputs,
                                 size_t count) {
  std::sort(outputs.begin(), outputs.end(),
            [](const Output& a, const Output& b) { return a.range.offset < b.range.offset; });
  size_t done = 0;
  for (const Output& output : outputs) {
    if (output.range.offset != done) return "element " + std::to_string(done) + " is not stored exactly once";
    done += output.range.count;
    for (const size_t element : {output.range.offset, done - 1}) {
      const int wanted = expected.at(element);
      if (output.expression != wanted) {
        return "element " + std::to_string(element) + " is " +
               (output.expression < 0 ? "nothing" : pool.text(output.expression)) + ", not " + pool.text(wanted);
      }
    }
  }
  return done == count ? "" : std::to_string(done) + " elements stored, not " + std::to_string(count);
}

/// An element of the input is not read after its result was stored: in place must work.
inline std::string check_in_place(const Program& program) {
  std::map<size_t, size_t> stored;  // offset -> end
  for (const Event& event : program.events) {
    const bool reads = event.kind == EventKind::kEncode || event.kind == EventKind::kAccumulate ||
                       event.kind == EventKind::kFinish || event.kind == EventKind::kReduceCanonical;
    const bool stores = event.kind == EventKind::kDecode || event.kind == EventKind::kFinish ||
                        event.kind == EventKind::kForward || event.kind == EventKind::kReduceCanonical;
    if (event.range.count == 0) continue;
    const size_t end = event.range.offset + event.range.count;
    if (reads) {
      const auto after = stored.lower_bound(end);
      if (after != stored.begin() && std::prev(after)->second > event.range.offset) {
        return "input read after its result was stored, on rank " + std::to_string(program.rank);
      }
    }
    if (stores) stored[event.range.offset] = end;
  }
  return "";
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
  }
  for (const auto& channel : programs) {
    Replay replay(scenario.placement, scenario.slot_count, scenario.fifo_slot_count, expressions, channel, traces);
    detail::run(replay, order);
    if (!replay.ok()) return replay.report();
    for (const auto& operation : channel) {
      for (const Program& program : operation) {
        const std::string problem = detail::check_in_place(program);
        if (!problem.empty()) return problem;
      }
    }
  }
  for (size_t i = 0; i < traces.size(); ++i) {
    const Operation& operation = scenario.operations[i];
    const detail::Expected expected(expressions, scenario, operation);
    for (int rank = 0; rank < scenario.placement.world_size; ++rank) {
      const bool no_result = operation.collective == Collective::kBarrier ||
                             (operation.collective == Collective::kBroadcast && rank == operation.root);
      const std::string problem = detail::check_outputs(
          expressions, expected, traces[i].outputs[static_cast<size_t>(rank)], no_result ? 0 : operation.count);
      if (!problem.empty()) {
        return "operation " + std::to_string(i) + " rank " + std::to_string(rank) + ": " + problem;
      }
    }
  }
  if (traces_out != nullptr) *traces_out = std::move(traces);
  return "";
}

}  // namespace dcomm::checks
