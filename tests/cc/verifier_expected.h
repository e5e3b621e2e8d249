// What an operation must give, element by element, and where its arrays may overlap: written from the definitions
// of the collectives, with no code of csrc/algo or csrc/schedule.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tree_order.h"
#include "verifier_scenario.h"

namespace dcomm::checks {

/// Elements [range) of a rank's result are elements [value.offset, ...) of the inputs, summed as value.expression.
using Expected = std::vector<Output>;

namespace detail {

inline size_t chunk_count_of(size_t count, size_t num_chunks) {
  return ((count + num_chunks - 1) / num_chunks + 15) / 16 * 16;
}

/// Nodes lo .. hi: own + first child's + second child's.
inline int tree_sum(Expressions& pool, int lo, int hi, int n, int tree) {
  const int root = tree_root_of(lo, hi);
  int sum = pool.input(tree_rank_at(root, n, tree));
  if (root > lo) sum = pool.add(sum, tree_sum(pool, lo, root - 1, n, tree));
  if (root < hi) sum = pool.add(sum, tree_sum(pool, root + 1, hi, n, tree));
  return sum;
}

inline Expected expected_all_reduce(Expressions& pool, const Operation& operation, int n, int canonical) {
  if (operation.algo != Algo::kRing && operation.algo != Algo::kTree) {
    return {{{0, operation.count}, {canonical, 0}}};
  }
  Expected expected;
  const int num_chunks = operation.algo == Algo::kRing ? n : 2;
  const size_t chunk_count = chunk_count_of(operation.count, static_cast<size_t>(num_chunks));
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    const size_t begin = std::min(operation.count, static_cast<size_t>(chunk) * chunk_count);
    const size_t end = std::min(operation.count, begin + chunk_count);
    int sum = 0;
    if (operation.algo == Algo::kTree) {
      sum = tree_sum(pool, 1, n, n, chunk);
    } else {  // chunk c in the order c+1, ..., c
      sum = pool.input((chunk + 1) % n);
      for (int i = 2; i <= n; ++i) sum = pool.add(sum, pool.input((chunk + i) % n));
    }
    expected.push_back({{begin, end - begin}, {sum, begin}});
  }
  return expected;
}

}  // namespace detail

/// What `rank` has in the end; nothing where its array is left as it was.
inline Expected expected_of(Expressions& pool, const Scenario& scenario, const Operation& operation, int rank) {
  const int n = scenario.placement.world_size;
  const size_t count = operation.count;
  const auto block = [count](int index) { return static_cast<size_t>(index) * count; };
  std::vector<int> terms;
  for (int i = 0; i < n; ++i) terms.push_back(pool.input(i));
  const int canonical = pool.tree(terms, 0, terms.size());
  const bool is_root = rank == operation.root;
  Expected expected;
  switch (operation.collective) {
    case Collective::kAllReduce:
      return detail::expected_all_reduce(pool, operation, n, canonical);
    case Collective::kBroadcast:
      if (!is_root) expected.push_back({{0, count}, {pool.input(operation.root), 0}});
      break;
    case Collective::kReduceScatter:
      expected.push_back({{0, count}, {canonical, block(rank)}});
      break;
    case Collective::kReduce:
      if (is_root) expected.push_back({{0, count}, {canonical, 0}});
      break;
    case Collective::kAllGather:
    case Collective::kGather:
      for (int i = 0; i < n && (is_root || operation.collective == Collective::kAllGather); ++i) {
        expected.push_back({{block(i), count}, {pool.input(i), 0}});
      }
      break;
    case Collective::kScatter:
      expected.push_back({{0, count}, {pool.input(operation.root), block(rank)}});
      break;
    case Collective::kAllToAll: {
      size_t offset = 0;
      for (int from = 0; from < n; ++from) {
        const auto length = [&](int to) {
          return operation.lengths.empty() ? count : operation.lengths[static_cast<size_t>(from * n + to)];
        };
        size_t source = 0;
        for (int before = 0; before < rank; ++before) source += length(before);
        expected.push_back({{offset, length(rank)}, {pool.input(from), source}});
        offset += length(rank);
      }
      break;
    }
    default:
      break;
  }
  return expected;
}

/// A way in which a rank's arrays may overlap: out[out_base + i] is in[in_base + i].
struct Alias {
  size_t in_base = 0;
  size_t out_base = 0;
};

/// The arrays may also be disjoint.
inline std::vector<Alias> aliases_of(const Operation& operation, int rank) {
  const auto block = [&](int index) { return static_cast<size_t>(index) * operation.count; };
  if (!operation.lengths.empty()) return {};
  const bool is_lent = operation.algo == Algo::kDirect;  // then others read this rank's input meanwhile
  switch (operation.collective) {
    case Collective::kReduceScatter:
      if (is_lent) return {{block(rank), 0}};
      return {{}, {block(rank), 0}};  // the result over this rank's own block
    case Collective::kScatter:
      return {{}, {block(operation.root), 0}};
    case Collective::kAllGather:
      if (is_lent) return {{0, block(rank)}};
      return {{}, {0, block(rank)}};  // the block at its place in the result
    case Collective::kGather:
      return {{}, {0, block(operation.root)}};
    default:
      return {{}};
  }
}

namespace detail {

/// Every element of the result exactly once, and right: parts with the value that they must have, run by run.
inline std::string check_outputs(const Expressions& pool, const Expected& expected, std::vector<Output>& outputs) {
  std::sort(outputs.begin(), outputs.end(),
            [](const Output& a, const Output& b) { return a.range.offset < b.range.offset; });
  size_t done = 0;
  size_t next = 0;
  for (const Output& output : outputs) {
    if (output.range.offset != done) return "element " + std::to_string(done) + " is not stored exactly once";
    while (done < output.range.offset + output.range.count) {
      while (next < expected.size() && expected[next].range.offset + expected[next].range.count <= done) ++next;
      if (next == expected.size()) return "element " + std::to_string(done) + " is stored beyond the result";
      const Output& wanted = expected[next];
      const size_t wanted_offset = wanted.value.offset + (done - wanted.range.offset);
      const size_t offset = output.value.offset + (done - output.range.offset);
      if (output.value.expression != wanted.value.expression || offset != wanted_offset) {
        return "element " + std::to_string(done) + " is " +
               (output.value.expression < 0 ? "nothing" : pool.text(output.value.expression)) + " of element " +
               std::to_string(offset) + ", not " + pool.text(wanted.value.expression) + " of " +
               std::to_string(wanted_offset);
      }
      done = std::min(output.range.offset + output.range.count, wanted.range.offset + wanted.range.count);
    }
  }
  const size_t total = expected.empty() ? 0 : expected.back().range.offset + expected.back().range.count;
  return done == total ? "" : std::to_string(done) + " elements stored, not " + std::to_string(total);
}

inline bool reads_input(EventKind kind) {
  return kind == EventKind::kEncode || kind == EventKind::kAccumulate || kind == EventKind::kFinish ||
         kind == EventKind::kReduceCanonical || kind == EventKind::kReduceEverywhere ||
         kind == EventKind::kReduceHere || kind == EventKind::kKeep || kind == EventKind::kCombine;
}

inline bool stores_result(const Event& event) {
  return event.kind == EventKind::kDecode || event.kind == EventKind::kFinish || event.kind == EventKind::kForward ||
         event.kind == EventKind::kReduceCanonical || event.kind == EventKind::kReduceEverywhere ||
         event.kind == EventKind::kReduceHere || event.kind == EventKind::kFetch || event.kind == EventKind::kKeep ||
         (event.kind == EventKind::kCombine && event.is_stored);
}

using Spans = std::map<size_t, size_t>;  // offset -> end

inline bool overlaps(const Spans& spans, size_t begin, size_t count) {
  const auto after = spans.lower_bound(begin + count);
  return count != 0 && after != spans.begin() && std::prev(after)->second > begin;
}

/// An element of the input is not read after its result was stored. Adds what was stored to `stored`.
inline std::string check_in_place(const Program& program, Alias alias = {}, Spans* stored_out = nullptr) {
  Spans stored;  // elements of `in`, shifted by out_base
  for (const Event& event : program.events) {
    const size_t count = event.range.count;
    const size_t read = event.range.offset + alias.out_base;
    const size_t written = event.out_offset + alias.in_base;
    const bool stays = event.kind == EventKind::kKeep && read == written;
    if (count == 0 || stays) continue;
    if (reads_input(event.kind) && overlaps(stored, read, count)) {
      return "input read after its result was stored, on rank " + std::to_string(program.rank);
    }
    if (stores_result(event)) stored[written] = std::max(stored[written], written + count);
  }
  if (stored_out != nullptr) stored_out->merge(stored);
  return "";
}

/// Nothing orders the channels: none reads what another one stores.
inline std::string check_channels(const std::vector<const Program*>& channels, Alias alias,
                                  const std::vector<Spans>& stored) {
  for (size_t reader = 0; reader < channels.size(); ++reader) {
    for (size_t writer = 0; writer < channels.size(); ++writer) {
      for (const Event& event : channels[reader]->events) {
        if (reader == writer || !reads_input(event.kind)) continue;
        if (overlaps(stored[writer], event.range.offset + alias.out_base, event.range.count)) {
          return "input of one channel is stored by another, on rank " + std::to_string(channels[reader]->rank);
        }
      }
    }
  }
  return "";
}

/// Nothing orders the ranks while they read each other's inputs: none stores over what another one fetches of its own.
inline std::string check_owners(const Record& programs, size_t index, size_t owner, Alias alias,
                                const std::vector<Spans>& stored) {
  for (const auto& channel : programs) {
    for (const Program& reader : channel[index]) {
      if (reader.rank == static_cast<int>(owner)) continue;
      for (const Event& event : reader.events) {
        const bool fetches = event.kind == EventKind::kFetch && event.peer == static_cast<int>(owner);
        if (!fetches && event.kind != EventKind::kReduceHere) continue;
        for (const Spans& spans : stored) {
          if (!overlaps(spans, event.range.offset + alias.out_base, event.range.count)) continue;
          return "rank " + std::to_string(owner) + " stores over what rank " + std::to_string(reader.rank) + " fetches";
        }
      }
    }
  }
  return "";
}

/// In place, in every way that the collective allows.
inline std::string check_aliases(const Operation& operation, const Record& programs, size_t index) {
  for (size_t rank = 0; rank < programs[0][index].size(); ++rank) {
    for (const Alias& alias : aliases_of(operation, static_cast<int>(rank))) {
      std::vector<const Program*> channels;
      std::vector<Spans> stored(programs.size());
      for (size_t channel = 0; channel < programs.size(); ++channel) {
        channels.push_back(&programs[channel][index][rank]);
        const std::string problem = check_in_place(*channels.back(), alias, &stored[channel]);
        if (!problem.empty()) return problem;
      }
      std::string problem = check_channels(channels, alias, stored);
      if (problem.empty()) problem = check_owners(programs, index, rank, alias, stored);
      if (!problem.empty()) return problem;
    }
  }
  return "";
}

}  // namespace detail

}  // namespace dcomm::checks
