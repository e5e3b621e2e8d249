// The canonical order of summation: a balanced pairwise tree over the rank index.
// Floor: schedule (pure integers; host and device).
//
// [lo, hi) is split at lo + the largest power of two below its length: ((0+1)+(2+3))+4 for five ranks.
// A binary counter gives the same tree without recursion: push the terms in order; after term i, merge
// once per trailing one bit of i; at the end merge what is left from the smallest part up.
// The order depends on nothing but the number of terms, so the same tensor reduced whole or in any splits
// gives the same bytes, and a local accumulation of the same shape continues the tree.
#pragma once

#include "base/macros.h"

namespace dcomm {

inline constexpr int kMaxTreeLevels = 31;

/// How many merges follow term `index` (the number of trailing one bits).
DCOMM_HOST_DEVICE constexpr int canonical_merges_after(unsigned index) {
  int merges = 0;
  while (index & 1u) {
    ++merges;
    index >>= 1;
  }
  return merges;
}

/// Where [lo, hi) is split; hi - lo >= 2.
DCOMM_HOST_DEVICE constexpr int canonical_split(int lo, int hi) {
  int half = 1;
  while (2 * half < hi - lo) half *= 2;
  return lo + half;
}

}  // namespace dcomm
