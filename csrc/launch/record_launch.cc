#include "launch/record_launch.h"

#include "algo/all_reduce_direct.h"
#include "algo/all_reduce_one_shot.h"
#include "algo/all_reduce_ring.h"
#include "algo/all_reduce_tree.h"
#include "algo/all_reduce_two_shot.h"
#include "base/error.h"

namespace dcomm {

namespace {

void run(RecordExec& exec, Algo algo, int world_size, size_t count) {
  const size_t slot_count = round_up(count + 1, kChunkAlign);
  const auto plan = [&](int num_chunks) { return ChunkPlan::make(count, num_chunks, slot_count, 1); };
  const RecordKernels kernels;
  switch (algo) {
    case Algo::kRing:
      all_reduce_ring(exec, kernels, plan(world_size));
      return;
    case Algo::kTwoShot:
      all_reduce_two_shot(exec, kernels, plan(world_size));
      return;
    case Algo::kOneShot:
      all_reduce_one_shot(exec, kernels, plan(1));
      return;
    case Algo::kDirect:
      all_reduce_direct(exec, kernels, plan(world_size));
      return;
    case Algo::kTree:
      all_reduce_tree(exec, kernels, plan(kNumTrees));
      return;
    default:
      throw_error(ErrorCode::kInvalidArgument, "algo '", algo_name(algo), "' is no all-reduce");
  }
}

}  // namespace

std::vector<std::vector<RecordedMessage>> record_all_reduce(Algo algo, int world_size, size_t count) {
  DCOMM_CHECK(world_size >= 2, ErrorCode::kInvalidArgument, "world_size=", world_size, ": expected at least 2");
  std::vector<std::vector<RecordedMessage>> found;
  for (int rank = 0; rank < world_size; ++rank) {
    RecordExec exec(Placement{PlacementKind::kBounce, world_size, 2}, rank, 0);
    run(exec, algo, world_size, count);
    std::vector<RecordedMessage>& messages = found.emplace_back();
    for (const Event& event : exec.take().events) {
      if (event.kind != EventKind::kPublish && event.kind != EventKind::kArrive) continue;
      messages.push_back({rank, event.kind == EventKind::kPublish, event.peer, event.flow, event.seq, event.range});
    }
  }
  return found;
}

}  // namespace dcomm
