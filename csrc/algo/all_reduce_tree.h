// Tree all-reduce: sums climb two binary trees, results come down. Floor: algo (host and device).
//
// Half of the elements go through each tree (schedule/tree.h), whose inner ranks are the other's leaves.
// Per tile and tree:
//   up    a leaf sends its terms; an inner rank adds its first child's sum to its own terms, then its second
//         child's, and sends that on; the root's sum is the result
//   down  everyone keeps the result and passes it to its children, over the slots in which their sums came
// A rank sends as a leaf before it waits for children, and passes results on before it waits as a leaf: so neither tree
// waits for the other.
// 2 floor(log2 n) steps, at most 2 S bytes sent per rank. Half-precision wires round the partial sum at every hop.
// A child sends tile t+1 before it has tile t's result: two slots per edge suffice, and no credit is needed, since it
// sends tile t+2 only after tile t's result, which its parent sent after it had read tile t.
// Source: as schedule/tree.h.
#pragma once

#include "base/failpoint.h"
#include "base/mutation.h"
#include "protocol/exec.h"
#include "schedule/partition.h"
#include "schedule/tree.h"

namespace dcomm {

/// `rank`'s place in `tree`.
DCOMM_HOST_DEVICE TreeNode tree_place(int rank, int world_size, int tree) {
  TreeNode node = tree_node(rank, world_size, tree);
  if (mutated(Mutation::kSwappedTreeParent)) node.parent = tree_node(rank, world_size, 1 - tree).parent;
  return node;
}

/// This rank's terms and its children's sums of `range` go to its parent, or, at the root, become the result.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool tree_up(Exec& exec, const Kernels& kernels, const TreeNode& node, uint64_t seq, Range range) {
  const int num_children = node.num_children();
  for (int i = 0; i < num_children; ++i) {
    if (exec.arrive(Edge{node.children[i], Flow::kTreeUp}, seq) == nullptr) return false;
  }
  const auto sum_of = [&](int i) { return exec.inbox(Edge{node.children[i], Flow::kTreeUp}, seq); };
  if (node.parent >= 0) {
    const Edge up{node.parent, Flow::kTreeUp};
    const auto to_parent = [&](int) { return exec.outbox(up, seq); };
    if (num_children == 0) {
      kernels.encode(exec, exec.outbox(up, seq), range);
    } else {
      kernels.combine(exec, range, sum_of, num_children, to_parent, 1, false);
    }
    exec.publish(up, seq);
    return true;
  }
  const auto to_child = [&](int i) { return exec.outbox(Edge{node.children[i], Flow::kTreeDown}, seq); };
  kernels.combine(exec, range, sum_of, num_children, to_child, num_children, true);
  for (int i = 0; i < num_children; ++i) exec.publish(Edge{node.children[i], Flow::kTreeDown}, seq);
  return true;
}

/// The result comes from the parent and goes to the children; the root has sent it already.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool tree_down(Exec& exec, const Kernels& kernels, const TreeNode& node, uint64_t seq, Range range) {
  if (node.parent < 0) return true;
  const auto from = exec.arrive(Edge{node.parent, Flow::kTreeDown}, seq);
  if (from == nullptr) return false;
  const int num_children = node.num_children();
  if (num_children == 2) {
    kernels.copy(exec, exec.outbox(Edge{node.children[1], Flow::kTreeDown}, seq), from, range);
  }
  if (num_children == 0) {
    kernels.decode(exec, range, from);
  } else {
    kernels.forward(exec, exec.outbox(Edge{node.children[0], Flow::kTreeDown}, seq), from, range);
  }
  for (int i = 0; i < num_children; ++i) exec.publish(Edge{node.children[i], Flow::kTreeDown}, seq);
  return true;
}

/// plan: kNumTrees chunks.
template <class Exec, class Kernels>
DCOMM_HOST_DEVICE bool all_reduce_tree(Exec& exec, const Kernels& kernels, const ChunkPlan& plan) {
  const int channel = exec.channel();
  const int inner = tree_inner(exec.rank());
  const uint64_t first = exec.load_counter(Counter::kTree);
  const uint64_t num_tiles = plan.num_tiles();
  for (uint64_t turn = 0; turn <= num_tiles; ++turn) {
    if (turn > 1 && !mutated(Mutation::kTreeNoReuseSync))
      exec.sync();  // lanes have read the results that the next sums overwrite
    for (int i = 0; i < kNumTrees && turn < num_tiles; ++i) {
      const int tree = i == 0 ? 1 - inner : inner;
      const TreeNode node = tree_place(exec.rank(), exec.world_size(), tree);
      if (!tree_up(exec, kernels, node, first + turn, plan.segment(tree, channel, turn))) return false;
    }
    failpoint("up_the_tree");
    if (turn == 0) continue;  // one tile of look-ahead
    for (int i = 0; i < kNumTrees; ++i) {
      const int tree = i == 0 ? inner : 1 - inner;
      const TreeNode node = tree_place(exec.rank(), exec.world_size(), tree);
      if (!tree_down(exec, kernels, node, first + turn - 1, plan.segment(tree, channel, turn - 1))) return false;
    }
  }
  exec.store_counter(Counter::kTree, first + num_tiles);
  return true;
}

}  // namespace dcomm
