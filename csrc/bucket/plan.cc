#include "bucket/plan.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "schedule/partition.h"

namespace dcomm {

namespace {

void check_order(const std::vector<size_t>& order, size_t num_arrays) {
  DCOMM_CHECK(order.size() == num_arrays, ErrorCode::kInvalidArgument, "plan_buckets: order has ", order.size(),
              " entries for ", num_arrays, " arrays; pass every array's number once");
  std::vector<bool> seen(num_arrays, false);
  for (const size_t index : order) {
    DCOMM_CHECK(index < num_arrays, ErrorCode::kInvalidArgument, "plan_buckets: order names array ", index, " of ",
                num_arrays, "; numbers start at 0");
    DCOMM_CHECK(!seen[index], ErrorCode::kInvalidArgument, "plan_buckets: order names array ", index,
                " twice; pass every array's number once");
    seen[index] = true;
  }
}

void check_bytes(const std::vector<size_t>& counts, const std::vector<DType>& dtypes) {
  size_t left = SIZE_MAX / 2;
  for (size_t i = 0; i < counts.size(); ++i) {
    const size_t most = (left - left % kBucketAlignBytes) / dtype_bytes(dtypes[i]);
    DCOMM_CHECK(counts[i] <= most, ErrorCode::kInvalidArgument, "plan_buckets: array ", i, " has ", counts[i],
                " elements: the arrays take more bytes than there are addresses");
    left -= round_up(counts[i] * dtype_bytes(dtypes[i]), kBucketAlignBytes);
  }
}

}  // namespace

std::vector<PlannedBucket> plan_buckets(const std::vector<size_t>& counts, const std::vector<DType>& dtypes,
                                        const std::vector<size_t>& order, const BucketLimits& limits) {
  DCOMM_CHECK(counts.size() == dtypes.size(), ErrorCode::kInvalidArgument, "plan_buckets: got ", counts.size(),
              " counts and ", dtypes.size(), " dtypes; pass one of each for every array");
  DCOMM_CHECK(limits.bucket_bytes != 0 && limits.first_bucket_bytes != 0, ErrorCode::kInvalidArgument,
              "plan_buckets: got bucket_bytes ", limits.bucket_bytes, " and first_bucket_bytes ",
              limits.first_bucket_bytes, "; both are at least 1");
  check_order(order, counts.size());
  check_bytes(counts, dtypes);

  struct Filling {
    PlannedBucket bucket;
    size_t nbytes = 0;
    size_t last = 0;  // position in `order` of its last array
    bool is_first = true;
  };
  std::vector<Filling> open(kNumDTypes);
  std::vector<Filling> closed;
  for (size_t position = 0; position < order.size(); ++position) {
    const size_t index = order[position];
    const DType dtype = dtypes[index];
    const size_t nbytes = round_up(counts[index] * dtype_bytes(dtype), kBucketAlignBytes);
    Filling& filling = open[static_cast<size_t>(dtype)];
    const size_t limit = filling.is_first ? limits.first_bucket_bytes : limits.bucket_bytes;
    // Not nbytes > limit - filling.nbytes: a bucket of one large array is past its limit already.
    if (!filling.bucket.arrays.empty() && filling.nbytes + nbytes > limit) {
      closed.push_back(std::move(filling));
      filling = Filling{};
      filling.is_first = false;
    }
    filling.bucket.dtype = dtype;
    filling.bucket.arrays.push_back({index, filling.nbytes / dtype_bytes(dtype)});
    filling.nbytes += nbytes;
    filling.last = position;
  }
  for (Filling& filling : open) {
    if (!filling.bucket.arrays.empty()) closed.push_back(std::move(filling));
  }
  std::sort(closed.begin(), closed.end(), [](const Filling& a, const Filling& b) { return a.last < b.last; });

  std::vector<PlannedBucket> plan;
  for (Filling& filling : closed) {
    filling.bucket.count = filling.nbytes / dtype_bytes(filling.bucket.dtype);
    plan.push_back(std::move(filling.bucket));
  }
  return plan;
}

}  // namespace dcomm
