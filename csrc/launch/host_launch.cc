#include "launch/host_launch.h"

#include <cstring>

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
#include "exec/float_environment.h"
#include "exec/host_block_tiles.h"
#include "protocol/averaging.h"

namespace dcomm {

namespace {

/// Small enough for one message of packets.
bool fits_packets(const CollectiveCall& call, const WindowLayout& layout) {
  return call.count * dtype_bytes(call.wire) <= layout.packet_bytes / kLineBytes * kPacketPayloadBytes;
}

/// Which slots carry `call`.
SlotPool pool_of(const CollectiveCall& call) {
  switch (call.collective) {
    case Collective::kAllReduce:
      return call.algo == Algo::kOneShot ? SlotPool::kExchange : SlotPool::kMain;
    case Collective::kReduceScatter:
    case Collective::kAllGather:
      return SlotPool::kExchange;
    case Collective::kBroadcast:
      return SlotPool::kFifo;
    case Collective::kReduce:
    case Collective::kGather:
    case Collective::kScatter:
    case Collective::kAllToAll:
      return SlotPool::kPair;
    case Collective::kSend:
    case Collective::kRecv:
      return SlotPool::kMessage;
    case Collective::kBarrier:
    case Collective::kSplit:
    case Collective::kEmpty:
    case Collective::kRegister:
    case Collective::kCudaSetUp:
      break;
  }
  return SlotPool::kMain;
}

/// How many parts the algorithm cuts a message into.
int num_chunks_of(const CollectiveCall& call, int world_size) {
  if (call.collective != Collective::kAllReduce || call.algo == Algo::kOneShot) return 1;
  return call.algo == Algo::kTree ? kNumTrees : world_size;
}

size_t slot_count(const CollectiveCall& call, const WindowLayout& layout) {
  return slot_capacity(call.wire, layout.slot_bytes[static_cast<size_t>(pool_of(call))]);
}

/// Where an all-to-all's blocks lie.
struct Blocks {
  const CollectiveCall& call;
  size_t slot_count;
  int num_channels;

  Range send_block(int peer) const { return block(peer, call.lengths ? &call.lengths->send : nullptr); }
  Range recv_block(int peer) const { return block(peer, call.lengths ? &call.lengths->recv : nullptr); }

 private:
  Range block(int peer, const std::vector<size_t>* lengths) const {
    const auto index = static_cast<size_t>(peer);
    if (lengths == nullptr) return {index * call.count, call.count};
    size_t offset = 0;
    for (size_t before = 0; before < index; ++before) offset += (*lengths)[before];
    return {offset, (*lengths)[index]};
  }
};

ChunkPlan slot_plan(const CollectiveCall& call, const WindowLayout& layout) {
  return ChunkPlan::make(call.count, num_chunks_of(call, layout.placement.world_size), slot_count(call, layout),
                         layout.num_channels);
}

bool run_reduce_scatter(HostExec& exec, const CollectiveCall& call, const HostKernels& kernels, const ChunkPlan& plan) {
  if (call.algo == Algo::kFlat) return reduce_scatter(exec, kernels, plan);
  return reduce_scatter_direct(exec, kernels, plan,
                               [&] { return reduce_scatter(exec, kernels, slot_plan(call, exec.layout())); });
}

bool run_all_gather(HostExec& exec, const CollectiveCall& call, const HostKernels& kernels, const ChunkPlan& plan) {
  if (call.algo == Algo::kFlat) return all_gather(exec, kernels, plan);
  return all_gather_direct(exec, kernels, plan,
                           [&] { return all_gather(exec, kernels, slot_plan(call, exec.layout())); });
}

bool run_all_reduce(HostExec& exec, const CollectiveCall& call, const HostKernels& kernels, const ChunkPlan& plan) {
  switch (call.algo) {
    case Algo::kRing:
      return all_reduce_ring(exec, kernels, plan);
    case Algo::kTree:
      return all_reduce_tree(exec, kernels, plan);
    case Algo::kOneShot:
      if (plan.count * kernels.wire_bytes <= exec.packet_capacity()) {
        return all_reduce_one_shot_packets(exec, kernels, plan);
      }
      return all_reduce_one_shot(exec, kernels, plan);
    case Algo::kDirect:
      return all_reduce_direct(exec, kernels, plan);
    default:
      if (is_block_scaled(call.wire)) return all_reduce_two_shot(exec, HostBlockKernels(kernels, call.wire), plan);
      return all_reduce_two_shot(exec, kernels, plan);
  }
}

void run_alone(const HostKernels& kernels, const CollectiveCall& call) {
  if (is_block_scaled(call.wire)) return HostBlockKernels(kernels, call.wire).reduce_alone(call.count);
  kernels.reduce_alone(call.count);
}

}  // namespace

CollectiveCall in_components(CollectiveCall call) {
  if (!is_complex(call.dtype)) return call;
  call.dtype = call.wire = component_of(call.dtype);
  call.count *= 2;
  if (call.lengths != nullptr) {
    auto doubled = std::make_shared<BlockLengths>(*call.lengths);
    for (size_t& length : doubled->send) length *= 2;
    for (size_t& length : doubled->recv) length *= 2;
    call.lengths = std::move(doubled);
  }
  return call;
}

HostKernels bind_kernels(const CollectiveCall& call, int world_size, const KernelTable& table) {
  HostKernels kernels;
  const ReduceOp op = reduces(call.collective) ? call.op : ReduceOp::kSum;  // the others only move
  DCOMM_CHECK(is_defined(op, call.dtype), ErrorCode::kInvalidArgument, "op='", reduce_op_name(op),
              "' is not defined for ", dtype_name(call.dtype), " arrays");
  kernels.functions = table.find(call.dtype, call.wire, op);
  DCOMM_CHECK(kernels.functions != nullptr, ErrorCode::kInvalidArgument, "wire_dtype ", dtype_name(call.wire),
              " is not available for ", dtype_name(call.dtype), " arrays and op='", reduce_op_name(op),
              "'; use None, or float16 / bfloat16 with a float32 array, or fp8 for sums of one");
  kernels.in = static_cast<const std::byte*>(call.in);
  kernels.out = static_cast<std::byte*>(call.out);
  if (call.in_table != nullptr) {
    kernels.in = Loader(call.in_table->spans());
    kernels.out = Storer(call.out_table->spans());
  }
  kernels.user_bytes = dtype_bytes(call.dtype);
  kernels.wire_bytes = dtype_bytes(call.wire);
  kernels.in_windows = call.shared_in.windows.get();
  kernels.out_windows = call.shared_out.windows.get();
  if (op == ReduceOp::kPremulSum) kernels.pre = {call.factor, true};
  if (op == ReduceOp::kAvg) {
    const bool sums_travel = call.algo == Algo::kRing || call.algo == Algo::kTree;
    const bool divide_first = divides_terms(call.dtype, call.wire, sums_travel);
    (divide_first ? kernels.pre : kernels.post).number = static_cast<double>(world_size);
  }
  return kernels;
}

ChunkPlan plan_call(const CollectiveCall& call, const WindowLayout& layout) {
  if (call.collective == Collective::kBarrier) return ChunkPlan::make(0, 1, kChunkAlign, layout.num_channels);
  size_t segment = slot_count(call, layout);
  const bool asks = lends_input_only(call.collective) && call.algo == Algo::kAuto;
  if (call.algo == Algo::kDirect || asks) segment = layout.direct_bytes / dtype_bytes(call.dtype);
  if (call.algo == Algo::kOneShot && fits_packets(call, layout)) {
    segment = layout.packet_bytes / kLineBytes * kPacketPayloadBytes / dtype_bytes(call.wire);
  }
  const size_t align = mutated(Mutation::kFp8ChunkInBlock) ? kChunkAlign : chunk_align_of(call.wire);
  return ChunkPlan::make(call.count, num_chunks_of(call, layout.placement.world_size), segment, layout.num_channels,
                         align);
}

bool run_lane(HostExec& exec, const CollectiveCall& call, const HostKernels& kernels, const ChunkPlan& plan) {
  switch (call.collective) {
    case Collective::kBarrier:
      return barrier(exec);
    case Collective::kBroadcast:
      return broadcast(exec, kernels, plan, call.root);
    case Collective::kAllReduce:
      return run_all_reduce(exec, call, kernels, plan);
    case Collective::kReduceScatter:
      return run_reduce_scatter(exec, call, kernels, plan);
    case Collective::kAllGather:
      return run_all_gather(exec, call, kernels, plan);
    case Collective::kReduce:
      return reduce(exec, kernels, plan, call.root);
    case Collective::kGather:
      return gather(exec, kernels, plan, call.root);
    case Collective::kScatter:
      return scatter(exec, kernels, plan, call.root);
    case Collective::kAllToAll:
      return all_to_all(exec, kernels, Blocks{call, slot_count(call, exec.layout()), plan.num_channels});
    case Collective::kSend:  // by comm/point_to_point.h, which knows what else has come in
    case Collective::kRecv:
    case Collective::kSplit:
    case Collective::kEmpty:
    case Collective::kRegister:
    case Collective::kCudaSetUp:
      break;
  }
  return false;
}

void run_alone(const CollectiveCall& call, const KernelTable& table) {
  if (call.count == 0) return;
  if (!reduces(call.collective)) {
    const bool moves = call.in != call.out && call.out != nullptr;  // the source of a broadcast has no result
    if (moves) std::memcpy(call.out, call.in, call.count * dtype_bytes(call.dtype));
    return;
  }
  run_alone(bind_kernels(call, 1, table), call);
}

// A number that has been rounded is rounded to itself: once more does no harm.
void quantize(CollectiveCall call, int divisor, const KernelTable& table) {
  call.collective = Collective::kAllReduce;
  call.algo = Algo::kTwoShot;
  call.op = ReduceOp::kAvg;
  const FloatEnvironment environment;
  run_alone(bind_kernels(call, divisor, table), call);
}

bool run_single_lane(HostContext& context, HostOp& op, const CollectiveCall& call, const KernelTable& table,
                     LaneScratch& scratch, uint64_t* sent_bytes) {
  LaneBarrier lanes(1);
  HostExec exec(context, op, lanes, 0, 0, scratch);
  HostKernels kernels = bind_kernels(call, context.world_size, table);
  kernels.sent_bytes = sent_bytes;
  return run_lane(exec, call, kernels, plan_call(call, context.layout));
}

}  // namespace dcomm
