// Messages that lie in many arrays: every algorithm with real data on real threads, bit for bit against reference.h,
// which knows of one array only; and the chunk table itself.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bucket/chunk_table.h"
#include "check.h"
#include "launch/host_pack.h"
#include "workload.h"

namespace dcomm::checks {
namespace {

/// A whole message in arrays of its own, each between guards and at any address.
class ArrayList {
 public:
  ArrayList(Random& random, DType dtype, const std::vector<size_t>& counts) {
    std::vector<ChunkTable::Array> arrays;
    for (const size_t count : counts) {
      arrays_.push_back(std::make_unique<GuardedArray>(count * dtype_bytes(dtype), random.below(17)));
      arrays.push_back({arrays_.back()->data(), count});
    }
    table_ = std::make_shared<ChunkTable>(arrays, dtype);
  }

  void fill(const Bytes& whole) {
    size_t done = 0;
    for (const auto& array : arrays_) {
      const size_t num_bytes = array->copy().size();
      const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(done);
      array->fill(Bytes(begin, begin + static_cast<std::ptrdiff_t>(num_bytes)));
      done += num_bytes;
    }
  }
  Bytes copy() const {
    Bytes whole;
    for (const auto& array : arrays_) {
      const Bytes part = array->copy();
      whole.insert(whole.end(), part.begin(), part.end());
    }
    return whole;
  }
  bool guards_intact() const {
    return std::all_of(arrays_.begin(), arrays_.end(), [](const auto& array) { return array->guards_intact(); });
  }
  const std::shared_ptr<const ChunkTable>& table() const { return table_; }

 private:
  std::vector<std::unique_ptr<GuardedArray>> arrays_;
  std::shared_ptr<const ChunkTable> table_;
};

/// Counts of arrays that hold `total` elements: one array, many of one element, or any, empty ones too.
std::vector<size_t> random_counts(Random& random, size_t total) {
  const uint64_t kind = random.below(4);
  if (kind == 0) return {total};
  if (kind == 1 && total <= 1000) return std::vector<size_t>(total, 1);
  std::vector<size_t> counts{0};
  const size_t most = kind == 2 ? 9 : 1 + total / 3;
  for (size_t left = total; left > 0;) {
    const size_t count = std::min<size_t>(left, random.below(most + 1));
    counts.push_back(count);
    left -= count;
  }
  counts.push_back(0);
  return counts;
}

/// All-reduces of lists, back to back; every rank has cut its message differently.
class ListWorkload {
 public:
  explicit ListWorkload(int world_size) : world_size_(world_size) {}

  void add(Random& random, const ReduceCase& what, size_t count, bool in_place) {
    Job job;
    for (int rank = 0; rank < world_size_; ++rank) job.inputs.push_back(random_array(random, what.dtype, count));
    job.expected = reference_all_reduce(what, job.inputs, count);
    for (int rank = 0; rank < world_size_; ++rank) {
      RankCall call;
      call.collective = Collective::kAllReduce;
      call.algo = what.algo;
      call.dtype = what.dtype;
      call.wire = what.wire;
      call.op = what.op;
      call.factor = what.factor;
      call.count = count;
      job.in.push_back(std::make_shared<ArrayList>(random, what.dtype, random_counts(random, count)));
      job.in.back()->fill(job.inputs[static_cast<size_t>(rank)]);
      job.out.push_back(in_place ? job.in.back()
                                 : std::make_shared<ArrayList>(random, what.dtype, random_counts(random, count)));
      call.in_table = job.in.back()->table().get();
      call.out_table = job.out.back()->table().get();
      job.calls.push_back(std::move(call));
    }
    jobs_.push_back(std::move(job));
  }

  /// What went wrong, or an empty string.
  std::string run(const GroupConfig& config) const {
    std::vector<std::vector<RankCall>> calls;
    for (const Job& job : jobs_) calls.push_back(job.calls);
    ThreadRanks ranks(config);
    for (const Outcome& outcome : ranks.run(calls)) {
      if (outcome.failure.code != ErrorCode::kOk) return "a rank failed; " + describe(config);
    }
    for (size_t i = 0; i < jobs_.size(); ++i) {
      const Job& job = jobs_[i];
      const RankCall& call = job.calls[0];
      for (size_t rank = 0; rank < job.out.size(); ++rank) {
        std::string what;
        if (job.out[rank]->copy() != job.expected) what = "wrong result";
        if (!job.in[rank]->guards_intact() || !job.out[rank]->guards_intact()) what = "wrote outside the arrays";
        if (job.in[rank] != job.out[rank] && job.in[rank]->copy() != job.inputs[rank]) what = "changed its input";
        if (what.empty()) continue;
        return what + ": operation " + std::to_string(i) + " rank " + std::to_string(rank) + " " +
               algo_name(call.algo) + " " + dtype_name(call.dtype) + " wire " + dtype_name(call.wire) + " " +
               reduce_op_name(call.op) + " count " + std::to_string(call.count) + " arrays " +
               std::to_string(call.in_table->num_arrays()) + "; " + describe(config);
      }
    }
    return "";
  }

 private:
  struct Job {
    std::vector<RankCall> calls;  // by rank, as all of these
    std::vector<std::shared_ptr<ArrayList>> in;
    std::vector<std::shared_ptr<ArrayList>> out;
    std::vector<Bytes> inputs;
    Bytes expected;
  };

  int world_size_;
  std::vector<Job> jobs_;
};

constexpr Algo kAlgos[] = {Algo::kOneShot, Algo::kTwoShot, Algo::kRing, Algo::kTree};
const ReduceCase kReductions[] = {
    {DType::kF32, DType::kF32, ReduceOp::kSum},
    {DType::kF32, DType::kF16, ReduceOp::kAvg},
    {DType::kF32, DType::kBF16, ReduceOp::kSum},
    {DType::kF16, DType::kF16, ReduceOp::kAvg},
    {DType::kF64, DType::kF64, ReduceOp::kMax},
    {DType::kI8, DType::kI8, ReduceOp::kProd},
    {DType::kI64, DType::kI64, ReduceOp::kBxor},
    {DType::kBool, DType::kBool, ReduceOp::kSum},
    {DType::kC64, DType::kC64, ReduceOp::kAvg},
    {DType::kF32, DType::kF32, ReduceOp::kPremulSum, Algo::kTwoShot, 0.3},
    {DType::kF32, DType::kF16, ReduceOp::kPremulSum, Algo::kTwoShot, 3.0},
};

void expect_runs(const GroupConfig& config, const ListWorkload& workload) {
  const std::string problem = workload.run(config);
  EXPECT_MSG(problem.empty(), problem);
}

}  // namespace

CHECK_CASE(bucket_lists_in_every_algorithm) {
  Random random(51);
  for (const int n : {2, 3, 4, 5, 8}) {
    for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
      GroupConfig config;
      config.world_size = n;
      config.placement = placement;
      config.num_lanes = n <= 4 ? 2 : 1;
      config.num_channels = random.one_of({1, 2});
      config.slot_bytes = config.fifo_slot_bytes = 512;
      ListWorkload workload(n);
      for (ReduceCase what : kReductions) {
        for (const Algo algo : kAlgos) {
          what.algo = algo;
          workload.add(random, what, random.one_of({size_t{1}, size_t{0}, size_t{37}, size_t{997}}), random.coin());
          workload.add(random, what, 997, random.coin());
        }
      }
      expect_runs(config, workload);
    }
  }
}

CHECK_CASE(bucket_lists_of_every_kind) {
  Random random(52);
  for (int round = 0; round < (kSanitized ? 8 : 60); ++round) {
    GroupConfig config;
    config.world_size = 2 + round % 4;
    config.placement = random.coin() ? PlacementKind::kBounce : PlacementKind::kPush;
    config.num_channels = random.one_of({1, 1, 3});
    config.num_lanes = random.one_of({1, 2, 3});
    config.slot_bytes = config.fifo_slot_bytes = 128 * (1 + random.below(8));
    ListWorkload workload(config.world_size);
    for (int i = 0; i < 8; ++i) {
      ReduceCase what = kReductions[random.below(std::size(kReductions))];
      what.algo = kAlgos[random.below(std::size(kAlgos))];
      workload.add(random, what, random.coin() ? random.below(40) : random.below(2000), random.coin());
    }
    expect_runs(config, workload);
  }
}

/// Small and quick, for the mutation that it must notice.
CHECK_CASE(protocol_many_arrays) {
  Random random(53);
  for (const Algo algo : kAlgos) {
    GroupConfig config;
    config.num_lanes = 2;
    config.slot_bytes = config.fifo_slot_bytes = 256;
    ListWorkload workload(2);
    for (int i = 0; i < 4; ++i) workload.add(random, {DType::kF32, DType::kF32, ReduceOp::kSum, algo}, 500, i % 2 == 0);
    expect_runs(config, workload);
  }
}

CHECK_CASE(bucket_table_finds_every_element) {
  Random random(54);
  for (int round = 0; round < 300; ++round) {
    const std::vector<size_t> counts = random_counts(random, random.below(200));
    const ArrayList list(random, DType::kF32, counts);
    const Spans& spans = list.table()->spans();
    size_t element = 0;
    for (size_t array = 0; array < counts.size(); ++array) {
      for (size_t i = 0; i < counts[array]; ++i, ++element) EXPECT_EQ(spans.find(element), array);
    }
    EXPECT_EQ(list.table()->count(), element);
    // All runs of a part, in order and each in one array.
    const size_t first = random.below(element + 1);
    const size_t count = random.below(element - first + 1);
    size_t next = 0;
    Loader(spans).for_each_run(first, count, 4, [&](size_t done, size_t n, const std::byte* at) {
      EXPECT_EQ(done, next);
      const size_t array = spans.find(first + done);
      EXPECT(at == spans.arrays[array] + (first + done - spans.starts[array]) * 4);
      EXPECT(n >= 1 && first + done + n <= spans.starts[array + 1]);
      next += n;
    });
    EXPECT_EQ(next, count);
  }
}

CHECK_CASE(bucket_table_knows_overlaps) {
  float memory[100];
  const auto table = [&](const std::vector<std::pair<size_t, size_t>>& parts) {
    std::vector<ChunkTable::Array> arrays;
    for (const auto& [first, count] : parts) arrays.push_back({memory + first, count});
    return std::make_unique<ChunkTable>(arrays, DType::kF32);
  };
  EXPECT(!table({{0, 10}, {10, 10}, {5, 0}})->overlaps_itself());
  EXPECT(table({{20, 10}, {0, 21}})->overlaps_itself());
  EXPECT(table({{0, 10}, {0, 10}})->overlaps_itself());
  const auto list = table({{50, 10}, {0, 10}, {20, 10}});
  EXPECT(list->overlaps(*list));
  EXPECT(list->overlaps(*table({{99, 1}, {29, 1}})));
  EXPECT(list->overlaps(*table({{0, 100}})));
  EXPECT(!list->overlaps(*table({{30, 20}, {10, 10}, {60, 40}, {25, 0}})));
  // A list that overlaps itself, against one that lies between its arrays.
  EXPECT(!table({{0, 40}, {5, 10}, {60, 5}})->overlaps(*table({{40, 20}})));
  EXPECT(list->is_same_memory(*table({{50, 10}, {0, 10}, {20, 10}})));
  EXPECT(!list->is_same_memory(*table({{0, 10}, {50, 10}, {20, 10}})));
  EXPECT(!list->is_same_memory(*table({{50, 10}, {0, 10}, {20, 11}})));
}

/// Pack and unpack of every pair of dtypes, against element-by-element arithmetic.
CHECK_CASE(bucket_pack_and_unpack) {
  Random random(55);
  const std::pair<DType, DType> pairs[] = {
      {DType::kF32, DType::kF32}, {DType::kF32, DType::kF16},   {DType::kF32, DType::kBF16},
      {DType::kF16, DType::kF32}, {DType::kBF16, DType::kF32},  {DType::kF16, DType::kF16},
      {DType::kI32, DType::kI32}, {DType::kBool, DType::kBool}, {DType::kC128, DType::kC128}};
  const auto value_at = [](const Bytes& from, size_t i, DType dtype) {
    if (is_half(dtype)) {
      uint16_t bits = 0;
      std::memcpy(&bits, &from[i * 2], 2);
      return half_value(bits, dtype);
    }
    float value = 0;
    std::memcpy(&value, &from[i * 4], 4);
    return value;
  };
  for (const auto& [from, to] : pairs) {
    for (const double scale : {1.0, 0.3}) {
      if (scale != 1.0 && !is_floating(from)) continue;
      for (const size_t count : {size_t{0}, size_t{1}, size_t{1000}, size_t{9001}}) {
        const Bytes input = random_array(random, from, count);
        Bytes expected = input;
        if (is_floating(from) && (from != to || scale != 1.0)) {
          expected.resize(count * dtype_bytes(to));
          for (size_t i = 0; i < count; ++i) {
            float value = value_at(input, i, from);
            if (scale != 1.0) value *= static_cast<float>(scale);
            if (is_half(to)) {
              const uint16_t bits = half_bits(round_to_half(value, to), to);
              std::memcpy(&expected[i * 2], &bits, 2);
            } else {
              if (std::isnan(value)) value = std::numeric_limits<float>::quiet_NaN();
              std::memcpy(&expected[i * 4], &value, 4);
            }
          }
        }
        ArrayList arrays(random, from, random_counts(random, count));
        arrays.fill(input);
        GuardedArray packed(expected.size(), random.below(17));
        pack_arrays(*arrays.table(), packed.data(), to, scale, *select_kernel_table(nullptr));
        EXPECT(packed.copy() == expected && packed.guards_intact() && arrays.copy() == input);

        GuardedArray whole(input.size(), random.below(17));
        whole.fill(input);
        const ArrayList unpacked(random, to, random_counts(random, count));
        unpack_arrays(whole.data(), from, *unpacked.table(), scale, *select_kernel_table(nullptr));
        EXPECT(unpacked.copy() == expected && unpacked.guards_intact() && whole.copy() == input);
      }
    }
  }
  const auto is_refused = [&](DType from, DType to, double scale) {
    const ArrayList arrays(random, from, {3});
    Bytes out(64);
    try {
      pack_arrays(*arrays.table(), out.data(), to, scale, *select_kernel_table(nullptr));
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT(is_refused(DType::kF64, DType::kF32, 1.0));
  EXPECT(is_refused(DType::kF16, DType::kBF16, 1.0));
  EXPECT(is_refused(DType::kI32, DType::kI32, 2.0));
  EXPECT(!is_refused(DType::kC64, DType::kC64, 2.0));
}

}  // namespace dcomm::checks
