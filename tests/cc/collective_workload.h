// Collectives with real data, and what they must give, from their definitions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "workload.h"

namespace dcomm::checks {

struct CollectiveCase {
  Collective collective = Collective::kAllGather;
  ReduceCase what;   // all_gather, gather, scatter, all_to_all: only the dtype means something
  size_t count = 0;  // of a block, where there are blocks
  int root = 0;
  bool in_place = false;
  bool misaligned = false;
  /// All-to-all: the length of the block that goes from a to b stands at a * world_size + b; empty: `count` each.
  std::vector<size_t> lengths{};
};

namespace detail {

inline Bytes slice(const Bytes& whole, size_t offset, size_t nbytes) {
  const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(offset);
  return Bytes(begin, begin + static_cast<std::ptrdiff_t>(nbytes));
}

inline void append(Bytes& to, const Bytes& more) { to.insert(to.end(), more.begin(), more.end()); }

inline void replace(Bytes& whole, size_t offset, const Bytes& with) {
  std::copy(with.begin(), with.end(), whole.begin() + static_cast<std::ptrdiff_t>(offset));
}

inline Bytes untouched(size_t nbytes) { return Bytes(nbytes, GuardedArray::kGuard); }

/// reduce_scatter and reduce.
inline std::vector<Workload::Part> reduction_parts(Random& random, const CollectiveCase& what, int n) {
  const bool scatters = what.collective == Collective::kReduceScatter;
  const size_t total = scatters ? what.count * static_cast<size_t>(n) : what.count;
  const size_t block = what.count * dtype_bytes(what.what.dtype);
  std::vector<Bytes> inputs;
  for (int rank = 0; rank < n; ++rank) inputs.push_back(random_array(random, what.what.dtype, total));
  const Bytes sum = reference_all_reduce(what.what, inputs, total);
  std::vector<Workload::Part> parts;
  for (int rank = 0; rank < n; ++rank) {
    const bool has_result = scatters || rank == what.root;
    const size_t begin = scatters ? static_cast<size_t>(rank) * block : 0;
    Workload::Part part;
    part.in = inputs[static_cast<size_t>(rank)];
    part.expected = has_result ? slice(sum, begin, block) : untouched(block);
    if (what.in_place && has_result) {
      Bytes whole = part.in;
      replace(whole, begin, part.expected);
      part.expected = whole;
      part.in_place = true;
      part.out_begin = begin;
    }
    parts.push_back(std::move(part));
  }
  return parts;
}

/// all_gather and gather.
inline std::vector<Workload::Part> gather_parts(Random& random, const CollectiveCase& what, int n) {
  const size_t block = what.count * dtype_bytes(what.what.dtype);
  std::vector<Workload::Part> parts(static_cast<size_t>(n));
  Bytes gathered;
  for (Workload::Part& part : parts) {
    part.in = random_array(random, what.what.dtype, what.count);
    append(gathered, part.in);
  }
  for (int rank = 0; rank < n; ++rank) {
    Workload::Part& part = parts[static_cast<size_t>(rank)];
    const bool has_result = what.collective == Collective::kAllGather || rank == what.root;
    part.expected = has_result ? gathered : untouched(gathered.size());
    if (!what.in_place || !has_result) continue;
    part.in_place = true;
    part.in_begin = static_cast<size_t>(rank) * block;
    Bytes whole = untouched(gathered.size());
    replace(whole, part.in_begin, part.in);
    part.in = whole;
  }
  return parts;
}

inline std::vector<Workload::Part> scatter_parts(Random& random, const CollectiveCase& what, int n) {
  const size_t block = what.count * dtype_bytes(what.what.dtype);
  const Bytes whole = random_array(random, what.what.dtype, what.count * static_cast<size_t>(n));
  std::vector<Workload::Part> parts(static_cast<size_t>(n));
  for (int rank = 0; rank < n; ++rank) {
    Workload::Part& part = parts[static_cast<size_t>(rank)];
    part.expected = slice(whole, static_cast<size_t>(rank) * block, block);
    if (rank != what.root) continue;
    part.in = whole;
    if (!what.in_place) continue;
    part.in_place = true;
    part.out_begin = static_cast<size_t>(rank) * block;
    part.expected = whole;  // its block is at its place
  }
  return parts;
}

inline std::vector<Workload::Part> all_to_all_parts(Random& random, const CollectiveCase& what, int n) {
  const auto num_ranks = static_cast<size_t>(n);
  const size_t width = dtype_bytes(what.what.dtype);
  std::vector<size_t> lengths = what.lengths;
  if (lengths.empty()) lengths.assign(num_ranks * num_ranks, what.count);
  std::vector<Workload::Part> parts(num_ranks);
  for (size_t from = 0; from < num_ranks; ++from) {
    const auto blocks = std::make_shared<BlockLengths>();
    for (size_t to = 0; to < num_ranks; ++to) {
      const Bytes block = random_array(random, what.what.dtype, lengths[from * num_ranks + to]);
      append(parts[from].in, block);
      append(parts[to].expected, block);  // in the order of the senders
      blocks->send.push_back(block.size() / width);
      blocks->recv.push_back(lengths[to * num_ranks + from]);
    }
    if (!what.lengths.empty()) parts[from].lengths = blocks;
    parts[from].in_place = what.in_place && what.lengths.empty();
  }
  return parts;
}

}  // namespace detail

inline void add_collective(Workload& workload, Random& random, const CollectiveCase& what, int world_size) {
  std::vector<Workload::Part> parts;
  ReduceCase reduce = what.what;
  switch (what.collective) {
    case Collective::kAllReduce:
      return workload.add_all_reduce(random, what.what, what.count, what.in_place, what.misaligned);
    case Collective::kBroadcast:
      return workload.add_broadcast(random, what.what.dtype, what.count, what.root);
    case Collective::kReduceScatter:
    case Collective::kReduce:
      parts = detail::reduction_parts(random, what, world_size);
      break;
    case Collective::kAllGather:
    case Collective::kGather:
      parts = detail::gather_parts(random, what, world_size);
      break;
    case Collective::kScatter:
      parts = detail::scatter_parts(random, what, world_size);
      break;
    case Collective::kAllToAll:
      parts = detail::all_to_all_parts(random, what, world_size);
      break;
    default:
      return workload.add_barrier();
  }
  if (!lends_input_only(what.collective)) reduce.algo = Algo::kFlat;
  if (!reduces(what.collective)) reduce = {reduce.dtype, reduce.dtype, ReduceOp::kSum, reduce.algo};
  workload.add_parts(random, what.collective, reduce, what.count, what.root, parts, what.misaligned);
}

}  // namespace dcomm::checks
