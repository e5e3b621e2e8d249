// Which arrays travel together: the bucket plan. Floor: bucket (pure; the same input gives the same plan everywhere).
//
//   order     | w4 | b4 | w3 | b3 | w2 | ...      e.g. the order in which gradients become ready
//   buckets   [ w4  b4 ]  [ w3  b3  w2 ]  ...     each of one dtype, filled in that order
//   inside    |w4.......pad|b4..pad|              arrays and totals are whole lines of 64 bytes
//
// Ranks that agree on counts, dtypes, order and limits have equal plans: nothing else goes in. The idea (a limit in
// bytes, a smaller one for the first bucket, so that communication starts early) is that of PyTorch's DDP.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/dtype.h"

namespace dcomm {

/// Arrays inside a bucket start at multiples of this many bytes: a cache line, and whole packs of any wire dtype.
inline constexpr size_t kBucketAlignBytes = 64;

struct PlannedArray {
  size_t index = 0;   // the array's number in the caller's list
  size_t offset = 0;  // elements from the start of the bucket
};

struct PlannedBucket {
  DType dtype = DType::kF32;
  size_t count = 0;  // elements, padding included
  std::vector<PlannedArray> arrays;
};

struct BucketLimits {
  size_t bucket_bytes = 0;
  size_t first_bucket_bytes = 0;  // of the first bucket of each dtype
};

/// Fills buckets in `order` (a permutation of the arrays' numbers), one open bucket for each dtype; a bucket is closed
/// when the next array, padding included, would exceed its limit, so that an array larger than the limit is alone.
/// Buckets come in the order in which their last arrays do: bucket i + 1 is never complete before bucket i where arrays
/// become ready in `order`. Throws kInvalidArgument for lists of unequal length, an order that is no permutation, a
/// limit of 0, or arrays of more bytes than there are addresses.
std::vector<PlannedBucket> plan_buckets(const std::vector<size_t>& counts, const std::vector<DType>& dtypes,
                                        const std::vector<size_t>& order, const BucketLimits& limits);

}  // namespace dcomm
