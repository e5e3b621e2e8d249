// The two trees of the tree all-reduce, from their definition: no code of csrc/schedule.
#pragma once

namespace dcomm::checks {

/// The rank at node `node` (of 1 .. n).
inline int tree_rank_at(int node, int n, int tree) {
  if (tree == 0) return node - 1;
  return n % 2 == 0 ? n - node : node % n;
}

/// The root of nodes lo .. hi: lo - 1 + the largest power of two that is at most their number. What lies below it is
/// its first child's tree, what lies above it its second child's.
inline int tree_root_of(int lo, int hi) {
  int half = 1;
  while (2 * half <= hi - lo + 1) half *= 2;
  return lo - 1 + half;
}

}  // namespace dcomm::checks
