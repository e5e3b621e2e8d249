// What the schedule verifier is given: operations on the same windows, and what every rank does for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "algo/all_gather.h"
#include "algo/all_gather_direct.h"
#include "algo/all_reduce_direct.h"
#include "algo/all_reduce_one_shot.h"
#include "algo/all_reduce_ring.h"
#include "algo/all_reduce_tree.h"
#include "algo/all_reduce_two_shot.h"
#include "algo/all_to_all.h"
#include "algo/barrier.h"
#include "algo/broadcast.h"
#include "algo/gather.h"
#include "algo/reduce.h"
#include "algo/reduce_scatter.h"
#include "algo/reduce_scatter_direct.h"
#include "algo/scatter.h"
#include "launch/host_launch.h"
#include "schedule/block_layout.h"
#include "verifier_replay.h"

namespace dcomm::checks {

struct Operation {
  Collective collective = Collective::kBarrier;
  Algo algo = Algo::kFlat;  // kAuto: the ranks ask each other, and one has its array elsewhere
  size_t count = 0;         // of a block, where there are blocks
  int root = 0;
  /// All-to-all: the length of the block that goes from a to b stands at a * world_size + b; empty: `count` each.
  std::vector<size_t> lengths{};
  DType wire = DType::kF32;
};

/// Operations one after the other, without any pause between them: slots and flags are reused across operations,
/// which is where mistakes hide.
struct Scenario {
  Placement placement;
  int num_channels = 1;
  SlotCounts slot_counts{16, 16, 16, 16, 16, 48};  // elements; packets: a multiple of kLineCount
  size_t direct_count = 16;                        // elements of a turn in place
  std::vector<Operation> operations;

  static constexpr size_t kElementBytes = 4;
  static constexpr size_t kLineCount = kPacketPayloadBytes / kElementBytes;

  size_t& slot_count(SlotPool pool) { return slot_counts[static_cast<size_t>(pool)]; }
  size_t slot_count(SlotPool pool) const { return slot_counts[static_cast<size_t>(pool)]; }

  ChunkPlan plan(const Operation& operation) const {
    WindowLayout layout{placement, num_channels, {}, slot_count(SlotPool::kPacket) / kLineCount * kLineBytes};
    for (size_t pool = 0; pool < kNumSlotPools; ++pool) {
      layout.slot_bytes[pool] = slot_bytes(slot_counts[pool], operation.wire);
    }
    layout.direct_bytes = direct_count * kElementBytes;
    CollectiveCall call;
    call.collective = operation.collective;
    call.algo = operation.algo;
    call.count = operation.count;
    call.wire = operation.wire;
    return plan_call(call, layout);
  }
  /// Of a slot that holds so many elements; where blocks share scales, a multiple of a block.
  static size_t slot_bytes(size_t count, DType wire) {
    if (!is_block_scaled(wire)) return count * kElementBytes;
    return BlockLayout{block_count_of(wire)}.element_offset(count - 1) + 1;
  }
  bool fits_packets(const Operation& operation) const { return operation.count <= slot_count(SlotPool::kPacket); }
};

/// One rank's blocks in an all-to-all, each after the one before.
struct RankBlocks {
  const Operation& operation;
  int rank;
  int world_size;
  size_t slot_count;
  int num_channels;

  Range send_block(int peer) const { return block(peer, rank * world_size, 1); }
  Range recv_block(int peer) const { return block(peer, rank, world_size); }

 private:
  Range block(int peer, int first, int stride) const {
    if (operation.lengths.empty()) return {static_cast<size_t>(peer) * operation.count, operation.count};
    size_t offset = 0;
    for (int before = 0; before < peer; ++before) offset += length(first + before * stride);
    return {offset, length(first + peer * stride)};
  }
  size_t length(int index) const { return operation.lengths[static_cast<size_t>(index)]; }
};

inline RankBlocks blocks_of(const Scenario& scenario, const Operation& operation, int rank) {
  return {operation, rank, scenario.placement.world_size, scenario.slot_count(SlotPool::kPair), scenario.num_channels};
}

namespace detail {

inline bool record_all_reduce(RecordExec& exec, const Scenario& scenario, const Operation& operation) {
  const ChunkPlan plan = scenario.plan(operation);
  switch (operation.algo) {
    case Algo::kRing:
      return all_reduce_ring(exec, RecordKernels{}, plan);
    case Algo::kTree:
      return all_reduce_tree(exec, RecordKernels{}, plan);
    case Algo::kDirect:
      return all_reduce_direct(exec, RecordKernels{}, plan);
    case Algo::kOneShot:
      if (scenario.fits_packets(operation)) return all_reduce_one_shot_packets(exec, RecordKernels{}, plan);
      return all_reduce_one_shot(exec, RecordKernels{}, plan);
    default:
      return all_reduce_two_shot(exec, RecordKernels{}, plan);
  }
}

inline bool record_reduce_scatter(RecordExec& exec, const Scenario& scenario, const Operation& operation) {
  const auto staged = [&] {
    return reduce_scatter(exec, RecordKernels{}, scenario.plan({operation.collective, Algo::kFlat, operation.count}));
  };
  if (operation.algo == Algo::kFlat) return staged();
  return reduce_scatter_direct(exec, RecordKernels{}, scenario.plan(operation), staged);
}

inline bool record_all_gather(RecordExec& exec, const Scenario& scenario, const Operation& operation) {
  const auto staged = [&] {
    return all_gather(exec, RecordKernels{}, scenario.plan({operation.collective, Algo::kFlat, operation.count}));
  };
  if (operation.algo == Algo::kFlat) return staged();
  return all_gather_direct(exec, RecordKernels{}, scenario.plan(operation), staged);
}

inline bool record_operation(RecordExec& exec, const Scenario& scenario, const Operation& operation) {
  const ChunkPlan plan = scenario.plan(operation);
  exec.set_all_lent(operation.algo != Algo::kAuto);
  switch (operation.collective) {
    case Collective::kBarrier:
      return barrier(exec);
    case Collective::kBroadcast:
      return broadcast(exec, RecordKernels{}, plan, operation.root);
    case Collective::kAllReduce:
      return record_all_reduce(exec, scenario, operation);
    case Collective::kReduceScatter:
      return record_reduce_scatter(exec, scenario, operation);
    case Collective::kAllGather:
      return record_all_gather(exec, scenario, operation);
    case Collective::kReduce:
      return reduce(exec, RecordKernels{}, plan, operation.root);
    case Collective::kGather:
      return gather(exec, RecordKernels{}, plan, operation.root);
    case Collective::kScatter:
      return scatter(exec, RecordKernels{}, plan, operation.root);
    case Collective::kAllToAll:
      return all_to_all(exec, RecordKernels{}, blocks_of(scenario, operation, exec.rank()));
    case Collective::kSend:
    case Collective::kRecv:
    case Collective::kSplit:
    case Collective::kEmpty:
    case Collective::kRegister:
    case Collective::kCudaSetUp:
      break;
  }
  return false;
}

}  // namespace detail

/// [channel][operation][rank]
using Record = std::vector<std::vector<std::vector<Program>>>;

inline Record record(const Scenario& scenario) {
  const auto n = static_cast<size_t>(scenario.placement.world_size);
  Record result;
  for (int channel = 0; channel < scenario.num_channels; ++channel) {
    std::vector<std::vector<Program>> programs(scenario.operations.size(), std::vector<Program>(n));
    for (int rank = 0; rank < scenario.placement.world_size; ++rank) {
      RecordExec exec(scenario.placement, rank, channel);
      for (size_t i = 0; i < scenario.operations.size(); ++i) {
        detail::record_operation(exec, scenario, scenario.operations[i]);
        programs[i][static_cast<size_t>(rank)] = exec.take();
      }
    }
    result.push_back(std::move(programs));
  }
  return result;
}

}  // namespace dcomm::checks
