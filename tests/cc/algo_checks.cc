// The algorithms with real data on real threads, bit for bit against reference.h.
#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "workload.h"

namespace dcomm::checks {
namespace {

/// Every (dtype, wire, op) that there is.
std::vector<ReduceCase> all_cases() {
  std::vector<ReduceCase> cases;
  for (int d = 0; d < kNumDTypes; ++d) {
    for (int w = 0; w < kNumDTypes; ++w) {
      for (int o = 0; o < kNumReduceOps; ++o) {
        const auto dtype = static_cast<DType>(d), wire = static_cast<DType>(w);
        const auto op = static_cast<ReduceOp>(o);
        if (dtype != wire && !(dtype == DType::kF32 && is_half(wire))) continue;
        if (is_defined(op, dtype)) cases.push_back({dtype, wire, op});
      }
    }
  }
  return cases;
}
const std::vector<ReduceCase> kCases = all_cases();

ReduceCase case_of(size_t index, Algo algo) {
  ReduceCase what = kCases[index % kCases.size()];
  what.algo = algo;
  return what;
}

size_t random_count(Random& random, int world_size) {
  const auto n = static_cast<uint64_t>(world_size);
  switch (random.below(6)) {
    case 0:
      return 0;
    case 1:
      return 1;
    case 2:
      return n - 1 + random.below(3);
    case 3:
      return 16 * n * random.below(4);
    default:
      return 1 + random.below(kSanitized ? 1200 : 4000);
  }
}

WaitPolicy random_policy(Random& random) {
  switch (random.below(3)) {
    case 0:
      return {0, 0, true};  // straight to the futex
    case 1:
      return {2'000, 1'000'000'000, false};
    default:
      return {0, 50'000, true};
  }
}

void expect_runs(const GroupConfig& config, const Workload& workload) {
  const std::string problem = run_workload(config, workload);
  EXPECT_MSG(problem.empty(), problem);
}

/// Two 64-bit FNV-1a hashes with different starting points.
std::string hash_of(const std::vector<Bytes>& parts) {
  uint64_t hashes[2] = {0xcbf29ce484222325ull, 0x84222325cbf29ce4ull};
  for (const Bytes& part : parts) {
    for (const unsigned char byte : part) {
      for (uint64_t& hash : hashes) hash = (hash ^ byte) * 0x100000001b3ull;
    }
  }
  return std::to_string(hashes[0]) + ":" + std::to_string(hashes[1]);
}

/// One all-reduce, or several that reduce its pieces one after the other; every rank's result must be the same.
std::string hash_of_run(const GroupConfig& config, const ReduceCase& what, const std::vector<Bytes>& inputs,
                        const std::vector<size_t>& counts, const Bytes& expected) {
  Random random(7);
  Workload workload(config.world_size);
  const size_t width = dtype_bytes(what.dtype);
  size_t offset = 0;
  for (const size_t count : counts) {
    const auto piece = [&](const Bytes& whole) {
      const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(offset * width);
      return Bytes(begin, begin + static_cast<std::ptrdiff_t>(count * width));
    };
    std::vector<Bytes> pieces;
    for (const Bytes& input : inputs) pieces.push_back(piece(input));
    workload.add_all_reduce_of(random, what, pieces, piece(expected), count, false, false);
    offset += count;
  }
  expect_runs(config, workload);
  std::string first;
  for (int rank = 0; rank < config.world_size; ++rank) {
    std::vector<Bytes> parts;
    for (size_t i = 0; i < counts.size(); ++i) parts.push_back(workload.result(i, rank));
    const std::string hash = hash_of(parts);
    if (rank == 0) first = hash;
    EXPECT_EQ(hash, first);
  }
  return first;
}

std::vector<size_t> random_splits(Random& random, size_t count, int num_parts) {
  std::vector<size_t> cuts{0, count};
  while (cuts.size() < static_cast<size_t>(num_parts) + 1) cuts.push_back(random.below(count + 1));
  std::sort(cuts.begin(), cuts.end());
  std::vector<size_t> counts;
  for (size_t i = 1; i < cuts.size(); ++i) counts.push_back(cuts[i] - cuts[i - 1]);
  return counts;
}

}  // namespace

// Any sequence of operations on any group, without a pause between them.
CHECK_CASE(algo_random_sequences) {
  Random random(11);
  size_t next_case = 0;
  const int num_groups = kSanitized ? 42 : 210;
  for (int i = 0; i < num_groups; ++i) {
    GroupConfig config;
    config.world_size = 2 + i % 7;
    config.placement = random.coin() ? PlacementKind::kBounce : PlacementKind::kPush;
    config.depth = random.one_of({2, 2, 4});
    config.num_channels = random.one_of({1, 1, 2, 3});
    config.num_lanes = random.one_of({1, 2, 2});
    config.slot_bytes = 128 * (1 + random.below(8));
    config.fifo_slot_bytes = 128 * (1 + random.below(8));
    config.policy = random_policy(random);
    Workload workload(config.world_size);
    for (int operation = 0; operation < 8; ++operation) {
      switch (random.below(8)) {
        case 0:
          workload.add_barrier();
          break;
        case 1:
        case 2:
          workload.add_broadcast(random, kCases[random.below(kCases.size())].dtype,
                                 random_count(random, config.world_size),
                                 static_cast<int>(random.below(static_cast<uint64_t>(config.world_size))));
          break;
        default:
          workload.add_all_reduce(random, case_of(next_case++, random.coin() ? Algo::kRing : Algo::kTwoShot),
                                  random_count(random, config.world_size), random.coin(), random.coin());
      }
    }
    expect_runs(config, workload);
  }
}

// Every dtype, wire and operation with these algorithms and placements, at a count with uneven chunks and segments.
CHECK_CASE(algo_every_case) {
  EXPECT_EQ(kCases.size(), size_t{6 * 6 + 4 * 7 + 7 + 2 * 2});  // floats, integers, bool, complex
  Random random(12);
  for (const int n : {2, 3, 4, 5, 8}) {
    for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
      GroupConfig config;
      config.world_size = n;
      config.placement = placement;
      config.num_lanes = n <= 4 ? 2 : 1;
      config.slot_bytes = 512;
      Workload workload(n);
      for (size_t i = 0; i < kCases.size(); ++i) {
        workload.add_all_reduce(random, case_of(i, Algo::kRing), 997, i % 2 == 0, i % 3 == 0);
        workload.add_all_reduce(random, case_of(i, Algo::kTwoShot), 997, i % 2 == 1, i % 3 == 1);
        if (kCases[i].dtype != kCases[i].wire || placement == PlacementKind::kPush) continue;
        workload.add_all_reduce(random, case_of(i, Algo::kDirect), 997, i % 2 == 0, i % 3 == 2);
      }
      expect_runs(config, workload);
    }
  }
}

// A shorter last segment is dealt out to the lanes in other shares than the one whose slot it takes over.
CHECK_CASE(algo_uneven_lanes) {
  Random random(13);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const int lanes : {2, 3}) {
      for (const Algo algo : {Algo::kRing, Algo::kTwoShot}) {
        GroupConfig config;
        config.world_size = 3;
        config.placement = placement;
        config.num_lanes = lanes;
        config.slot_bytes = 48 * 4;
        Workload workload(3);
        for (const size_t chunk : {size_t{112}, size_t{48 * 2 + 16}, size_t{48 * 4 + 32}, size_t{208}}) {
          workload.add_all_reduce(random, {DType::kF32, DType::kF32, ReduceOp::kSum, algo}, 3 * chunk);
        }
        expect_runs(config, workload);
      }
    }
  }
}

// The required test: one hash whatever the splits, channels and slots; for the ring one per count.
CHECK_CASE(algo_bits_ignore_splits_channels_slots) {
  Random random(14);
  const size_t count = kSanitized ? 1501 : 5003;
  for (int n = 2; n <= 8; ++n) {
    for (const DType wire : {DType::kF32, DType::kF16}) {
      for (const Algo algo : {Algo::kTwoShot, Algo::kRing}) {
        const ReduceCase what{DType::kF32, wire, ReduceOp::kAvg, algo};
        std::vector<Bytes> inputs;
        for (int rank = 0; rank < n; ++rank) inputs.push_back(random_array(random, what.dtype, count));
        const Bytes expected = reference_all_reduce(what, inputs, count);
        std::string hash;
        for (const int channels : {1, 2, 16}) {
          if (kSanitized && channels == 16 && n > 4) continue;
          for (const int depth : {2, 4}) {
            GroupConfig config;
            config.world_size = n;
            config.num_channels = channels;
            config.depth = depth;
            config.placement = random.coin() ? PlacementKind::kBounce : PlacementKind::kPush;
            config.slot_bytes = channels == 16 ? 128 : 1024;
            const std::string whole = hash_of_run(config, what, inputs, {count}, expected);
            if (hash.empty()) hash = whole;
            EXPECT_EQ(whole, hash);
            if (algo == Algo::kRing) continue;
            const auto splits = random_splits(random, count, 7);
            EXPECT_EQ(hash_of_run(config, what, inputs, splits, expected), hash);
          }
        }
      }
    }
  }
}

// The ring's result is not the canonical one, or the two would be one algorithm under two names.
CHECK_CASE(algo_ring_and_two_shot_differ) {
  Random random(15);
  for (const int n : {3, 4, 5, 8}) {
    std::vector<Bytes> inputs;
    for (int rank = 0; rank < n; ++rank) inputs.push_back(random_array(random, DType::kF32, 999));
    const ReduceCase ring{DType::kF32, DType::kF32, ReduceOp::kSum, Algo::kRing};
    const ReduceCase two_shot{DType::kF32, DType::kF32, ReduceOp::kSum, Algo::kTwoShot};
    GroupConfig config;
    config.world_size = n;
    const std::string a = hash_of_run(config, ring, inputs, {999}, reference_all_reduce(ring, inputs, 999));
    const std::string b = hash_of_run(config, two_shot, inputs, {999}, reference_all_reduce(two_shot, inputs, 999));
    EXPECT(a != b);
  }
}

}  // namespace dcomm::checks
