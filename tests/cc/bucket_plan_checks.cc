// The bucket plan: all small cases. What is checked determines the plan, so that no second planner is needed.
#include <algorithm>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "bucket/plan.h"
#include "check.h"
#include "random.h"

namespace dcomm::checks {
namespace {

struct PlanInput {
  std::vector<size_t> counts;
  std::vector<DType> dtypes;
  std::vector<size_t> order;
  BucketLimits limits;

  std::vector<PlannedBucket> plan() const { return plan_buckets(counts, dtypes, order, limits); }
  /// Bytes of an array with the padding behind it.
  size_t nbytes(size_t index) const { return (counts[index] * dtype_bytes(dtypes[index]) + 63) / 64 * 64; }
  size_t position(size_t index) const {
    return static_cast<size_t>(std::find(order.begin(), order.end(), index) - order.begin());
  }
};

void expect_greedy_plan(const PlanInput& input) {
  const std::vector<PlannedBucket> plan = input.plan();
  std::vector<std::vector<size_t>> placed(kNumDTypes);             // in the plan's order
  std::vector<const PlannedBucket*> last_of(kNumDTypes, nullptr);  // of each dtype
  std::vector<size_t> limit_of(kNumDTypes, input.limits.first_bucket_bytes);
  size_t last_position = 0;
  for (const PlannedBucket& bucket : plan) {
    EXPECT(!bucket.arrays.empty());
    const auto kind = static_cast<size_t>(bucket.dtype);
    size_t nbytes = 0;
    for (const PlannedArray& array : bucket.arrays) {
      EXPECT(input.dtypes.at(array.index) == bucket.dtype);
      EXPECT_EQ(array.offset * dtype_bytes(bucket.dtype), nbytes);
      nbytes += input.nbytes(array.index);
      placed[kind].push_back(array.index);
    }
    EXPECT_EQ(bucket.count * dtype_bytes(bucket.dtype), nbytes);

    // As full as can be: the bucket before it had no room for its first array.
    if (last_of[kind] != nullptr) {
      const size_t before = last_of[kind]->count * dtype_bytes(bucket.dtype);
      EXPECT(before + input.nbytes(bucket.arrays.front().index) > limit_of[kind]);
      limit_of[kind] = input.limits.bucket_bytes;
    }
    EXPECT(nbytes <= limit_of[kind] || bucket.arrays.size() == 1);
    last_of[kind] = &bucket;

    const size_t position = input.position(bucket.arrays.back().index);
    EXPECT(&bucket == &plan.front() || position > last_position);
    last_position = position;
  }
  // Every array once, those of a dtype in `order`.
  for (size_t kind = 0; kind < placed.size(); ++kind) {
    std::vector<size_t> wanted;
    for (const size_t index : input.order) {
      if (static_cast<size_t>(input.dtypes[index]) == kind) wanted.push_back(index);
    }
    EXPECT(placed[kind] == wanted);
  }
}

bool is_refused(const PlanInput& input) {
  try {
    input.plan();
  } catch (const Error& error) {
    return error.code() == ErrorCode::kInvalidArgument;
  }
  return false;
}

}  // namespace

CHECK_CASE(bucket_plan_every_small_case) {
  const size_t sizes[] = {0, 1, 16, 17, 40};
  for (size_t num_arrays = 0; num_arrays <= 4; ++num_arrays) {
    size_t num_cases = 1;
    for (size_t i = 0; i < num_arrays; ++i) num_cases *= 10;
    for (size_t number = 0; number < num_cases; ++number) {
      PlanInput input;
      for (size_t i = 0, rest = number; i < num_arrays; ++i, rest /= 10) {
        input.counts.push_back(sizes[rest % 5]);
        input.dtypes.push_back(rest / 5 % 2 == 0 ? DType::kF32 : DType::kF16);
      }
      input.order.resize(num_arrays);
      std::iota(input.order.begin(), input.order.end(), size_t{0});
      do {
        for (const size_t limit : {size_t{1}, size_t{64}, size_t{191}, size_t{192}, size_t{100000}}) {
          input.limits = {limit, number % 2 == 0 ? size_t{128} : size_t{64}};
          expect_greedy_plan(input);
        }
      } while (std::next_permutation(input.order.begin(), input.order.end()));
    }
  }
}

CHECK_CASE(bucket_plan_many_arrays_of_every_dtype) {
  Random random(7);
  for (int round = 0; round < 200; ++round) {
    PlanInput input;
    const size_t num_arrays = random.below(300);
    for (size_t i = 0; i < num_arrays; ++i) {
      input.counts.push_back(random.below(5000));
      input.dtypes.push_back(static_cast<DType>(random.below(kNumDTypes)));
      input.order.push_back(i);
    }
    for (size_t i = num_arrays; i > 1; --i) std::swap(input.order[i - 1], input.order[random.below(i)]);
    input.limits = {1 + random.below(100000), 1 + random.below(20000)};
    expect_greedy_plan(input);
  }
}

CHECK_CASE(bucket_plan_known_plan) {
  // float32 of 64 and 128 bytes, float16 of 64; the first bucket holds 128 bytes, the others 256.
  const PlanInput input{{16, 17, 1, 33, 8},
                        {DType::kF32, DType::kF32, DType::kF16, DType::kF32, DType::kF32},
                        {4, 3, 2, 1, 0},
                        {256, 128}};
  const std::vector<PlannedBucket> plan = input.plan();
  EXPECT_EQ(plan.size(), size_t{4});
  const std::vector<std::vector<size_t>> indices = {{4}, {3}, {2}, {1, 0}};
  const std::vector<size_t> counts = {16, 48, 32, 48};
  for (size_t i = 0; i < plan.size(); ++i) {
    EXPECT_EQ(plan[i].count, counts[i]);
    EXPECT_EQ(plan[i].arrays.size(), indices[i].size());
    for (size_t j = 0; j < indices[i].size(); ++j) EXPECT_EQ(plan[i].arrays[j].index, indices[i][j]);
  }
  EXPECT_EQ(plan[3].arrays[1].offset, size_t{32});
}

CHECK_CASE(bucket_plan_refuses_bad_input) {
  const PlanInput good{{1, 2}, {DType::kF32, DType::kF32}, {1, 0}, {100, 100}};
  EXPECT(!is_refused(good));
  PlanInput bad = good;
  bad.dtypes.pop_back();
  EXPECT(is_refused(bad));
  for (const std::vector<size_t>& order : {std::vector<size_t>{0}, {0, 0}, {0, 2}, {0, 1, 0}}) {
    bad = good;
    bad.order = order;
    EXPECT(is_refused(bad));
  }
  bad = good;
  bad.limits.bucket_bytes = 0;
  EXPECT(is_refused(bad));
  bad = good;
  bad.limits.first_bucket_bytes = 0;
  EXPECT(is_refused(bad));
  for (const size_t count : {SIZE_MAX, SIZE_MAX / 4, SIZE_MAX / 10, SIZE_MAX / 32}) {
    bad = good;
    bad.counts = {count, count};
    EXPECT_EQ(is_refused(bad), count != SIZE_MAX / 32);
  }
}

}  // namespace dcomm::checks
