// The canonical sum (schedule/canonical.h) in a thread's registers. Floor: exec.
#pragma once

#include "exec/cuda_block_exec.cuh"

namespace dcomm {

template <int kCount>
DCOMM_DEVICE void add_to(float (&sum)[kCount], const float (&term)[kCount]) {
  DCOMM_UNROLL
  for (int k = 0; k < kCount; ++k) sum[k] = sum[k] + term[k];
}

/// sum = the balanced tree over terms [kFirst, kFirst + kTerms), kTerms a power of two.
template <int kFirst, int kTerms, int kCount, class GetTerm>
DCOMM_DEVICE void sum_balanced(float (&sum)[kCount], const GetTerm& get_term) {
  if constexpr (kTerms == 1) {
    get_term(kFirst, sum);
  } else {
    float right[kCount];
    sum_balanced<kFirst, kTerms / 2>(sum, get_term);
    sum_balanced<kFirst + kTerms / 2, kTerms / 2>(right, get_term);
    add_to(sum, right);
  }
}

/// The binary counter over groups of four terms, for world sizes known at run time only. Its levels are indexed by
/// unrolled constants, so that they stay in registers.
template <int kCount>
class CudaCanonicalSum {
 public:
  static constexpr int kGroup = 4;
  static constexpr int kLevels = 6;
  static_assert(kMaxLocalRanks <= kGroup << (kLevels - 1));

  /// A whole group's sum; destroyed. Groups come in order.
  DCOMM_DEVICE void push(float (&group)[kCount]) {
    const uint32_t index = num_groups_++;
    bool placed = false;
    DCOMM_UNROLL
    for (int level = 0; level < kLevels; ++level) {
      const bool occupied = ((index >> level) & 1u) != 0;
      // The earlier terms stand on the left; exchanging the sides leaves every bit as it is.
      if (!placed && occupied) add_to(group, levels_[level]);
      if (!placed && !occupied) {
        copy(levels_[level], group);
        placed = true;
      }
    }
  }
  /// sum: what follows the last whole group if has_rest, then the total.
  DCOMM_DEVICE void finish(float (&sum)[kCount], bool has_rest) const {
    DCOMM_UNROLL
    for (int level = 0; level < kLevels; ++level) {
      if (((num_groups_ >> level) & 1u) == 0) continue;
      if (has_rest) {
        add_to(sum, levels_[level]);
      } else {
        copy(sum, levels_[level]);
      }
      has_rest = true;
    }
  }

 private:
  DCOMM_DEVICE static void copy(float (&to)[kCount], const float (&from)[kCount]) {
    DCOMM_UNROLL
    for (int k = 0; k < kCount; ++k) to[k] = from[k];
  }

  float levels_[kLevels][kCount];
  uint32_t num_groups_ = 0;
};

/// sum = the canonical sum of get_term(0), ..., get_term(num_terms - 1); get_term(i, value) sets `value`, in order.
template <int kCount, class GetTerm>
DCOMM_DEVICE void sum_canonical(int num_terms, const GetTerm& get_term, float (&sum)[kCount]) {
  constexpr int kGroup = CudaCanonicalSum<kCount>::kGroup;
  CudaCanonicalSum<kCount> total;
  int first = 0;
  DCOMM_ROLLED
  for (;; first += kGroup) {
    const int num = num_terms - first;  // from here on
    const auto term = [&](int k, float (&value)[kCount]) { get_term(first + k, value); };
    if (num >= kGroup) {
      sum_balanced<0, kGroup>(sum, term);
      total.push(sum);
      continue;
    }
    if (num >= 2) {
      sum_balanced<0, 2>(sum, term);
    } else if (num == 1) {
      term(0, sum);
    }
    if (num == 3) {
      float last[kCount];
      term(2, last);
      add_to(sum, last);
    }
    total.finish(sum, num > 0);
    return;
  }
}

}  // namespace dcomm
