// Runs a collective on the host executor: dtype x op x wire x algorithm to one template call. Floor: launch.
#pragma once

#include <cstddef>

#include "exec/host_exec.h"
#include "exec/host_kernels.h"
#include "exec/host_tiles.h"

namespace dcomm {

/// One collective, checked and complete: `algo` is not kAuto.
struct CollectiveCall {
  Collective collective = Collective::kBarrier;
  Algo algo = Algo::kFlat;
  DType dtype = DType::kF32;
  DType wire = DType::kF32;
  ReduceOp op = ReduceOp::kSum;
  int root = 0;
  const void* in = nullptr;  // count elements; may be equal to out
  void* out = nullptr;       // count elements
  size_t count = 0;
};

/// Scales, element sizes and tile functions of `call`. Throws kInvalidArgument where (dtype, wire, op) has none.
HostKernels bind_kernels(const CollectiveCall& call, int world_size, const KernelTable& table);

/// How `call` is cut for this window layout.
ChunkPlan plan_call(const CollectiveCall& call, const WindowLayout& layout);

/// Runs this lane's part; false when op.failed.
bool run_lane(HostExec& exec, const CollectiveCall& call, const HostKernels& kernels, const ChunkPlan& plan);

/// Runs the whole call in the calling thread (one channel, one lane).
bool run_single_lane(HostContext& context, HostOp& op, const CollectiveCall& call, const KernelTable& table,
                     void** scratch);

}  // namespace dcomm
