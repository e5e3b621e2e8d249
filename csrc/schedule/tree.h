// The double binary tree: two trees over all ranks, each rank inner in at most one. Floor: schedule (pure integers;
// host and device).
//
// Tree 0 numbers its nodes in order, 1 .. n (node = rank + 1): a node's level is its lowest set bit, so the odd ones
// are leaves. Tree 1 is its mirror image for an even n (node = n - rank), and turned by one for an odd n, which both
// make tree 0's inner nodes leaves. Half of the elements go through each tree: every rank sends and receives about
// as much as any other.
//   n = 6, tree 0:  3 has children 1 and 5, 1 has 0 and 2, 5 has 4
//          tree 1:  2 has children 4 and 0, 4 has 5 and 3, 0 has 1
// Source: Sanders, Speck, Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel
// Computing 2009.
#pragma once

#include "base/macros.h"

namespace dcomm {

inline constexpr int kNumTrees = 2;
inline constexpr int kMaxTreeChildren = 2;

/// A rank's place in one tree; -1: none.
struct TreeNode {
  int parent = -1;
  int children[kMaxTreeChildren] = {-1, -1};  // the first ones first

  DCOMM_HOST_DEVICE constexpr int num_children() const {
    return (children[0] >= 0 ? 1 : 0) + (children[1] >= 0 ? 1 : 0);
  }
};

/// `rank` as a node number of 1 .. n, and back.
DCOMM_HOST_DEVICE constexpr int tree_node_of(int rank, int world_size, int tree) {
  if (tree == 0) return rank + 1;
  if (world_size % 2 == 0) return world_size - rank;
  return rank == 0 ? world_size : rank;
}
DCOMM_HOST_DEVICE constexpr int tree_rank_of(int node, int world_size, int tree) {
  if (tree == 0) return node - 1;
  if (world_size % 2 == 0) return world_size - node;
  return node == world_size ? 0 : node;
}

/// The tree in which `rank` has children, if anywhere; in the other one it is a leaf.
DCOMM_HOST_DEVICE constexpr int tree_inner(int rank) { return rank % 2 == 1 ? 0 : 1; }

DCOMM_HOST_DEVICE constexpr TreeNode tree_node(int rank, int world_size, int tree) {
  const int node = tree_node_of(rank, world_size, tree);
  const int level = node & -node;
  TreeNode found;
  int parent = (node ^ level) | (level << 1);
  if (parent > world_size) parent = node ^ level;
  if (parent != 0) found.parent = tree_rank_of(parent, world_size, tree);
  int num_children = 0;
  if (level > 1) found.children[num_children++] = tree_rank_of(node - level / 2, world_size, tree);
  int right = level / 2;
  while (right > 0 && node + right > world_size) right /= 2;
  if (right > 0) found.children[num_children] = tree_rank_of(node + right, world_size, tree);
  return found;
}

}  // namespace dcomm
