#include "launch/host_launch.h"

#include "algo/all_reduce_ring.h"
#include "algo/all_reduce_two_shot.h"
#include "algo/barrier.h"
#include "algo/broadcast.h"
#include "protocol/averaging.h"

namespace dcomm {

HostKernels bind_kernels(const CollectiveCall& call, int world_size, const KernelTable& table) {
  HostKernels kernels;
  DCOMM_CHECK(is_defined(call.op, call.dtype), ErrorCode::kInvalidArgument, "op='", reduce_op_name(call.op),
              "' is not defined for ", dtype_name(call.dtype), " arrays");
  kernels.functions = table.find(call.dtype, call.wire, call.op);
  DCOMM_CHECK(kernels.functions != nullptr, ErrorCode::kInvalidArgument, "wire_dtype ", dtype_name(call.wire),
              " is not available for ", dtype_name(call.dtype),
              " arrays; use None, or float16 / bfloat16 with a float32 array");
  kernels.in = static_cast<const std::byte*>(call.in);
  kernels.out = static_cast<std::byte*>(call.out);
  kernels.user_bytes = dtype_bytes(call.dtype);
  kernels.wire_bytes = dtype_bytes(call.wire);
  if (call.collective == Collective::kAllReduce && call.op == ReduceOp::kAvg) {
    const bool divide_first = divides_terms(call.dtype, call.wire, call.algo == Algo::kRing);
    (divide_first ? kernels.pre : kernels.post).number = static_cast<double>(world_size);
  }
  return kernels;
}

ChunkPlan plan_call(const CollectiveCall& call, const WindowLayout& layout) {
  const bool fifo = call.collective == Collective::kBroadcast;
  const size_t slot_bytes = fifo ? layout.fifo_slot_bytes : layout.slot_bytes;
  const int num_chunks = fifo ? 1 : layout.placement.world_size;
  return ChunkPlan::make(call.count, num_chunks, slot_bytes / dtype_bytes(call.wire), layout.num_channels);
}

bool run_lane(HostExec& exec, const CollectiveCall& call, const HostKernels& kernels, const ChunkPlan& plan) {
  switch (call.collective) {
    case Collective::kBarrier:
      return barrier(exec);
    case Collective::kBroadcast:
      return broadcast(exec, kernels, plan, call.root);
    case Collective::kAllReduce:
      return call.algo == Algo::kRing ? all_reduce_ring(exec, kernels, plan) : all_reduce_two_shot(exec, kernels, plan);
  }
  return false;
}

bool run_single_lane(HostContext& context, HostOp& op, const CollectiveCall& call, const KernelTable& table,
                     void** scratch) {
  LaneBarrier lanes(1);
  HostExec exec(context, op, lanes, 0, 0, scratch);
  const HostKernels kernels = bind_kernels(call, context.world_size, table);
  return run_lane(exec, call, kernels, plan_call(call, context.layout));
}

}  // namespace dcomm
