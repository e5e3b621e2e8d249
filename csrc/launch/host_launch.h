// Runs a collective on the host executor: dtype x op x wire x algorithm to one template call. Floor: launch.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "bucket/chunk_table.h"
#include "exec/host_exec.h"
#include "exec/host_kernels.h"
#include "exec/host_tiles.h"
#include "memory/windows.h"

namespace dcomm {

/// The blocks of an all-to-all that differ in length, in elements; blocks lie one after the other.
struct BlockLengths {
  std::vector<size_t> send;  // by receiver
  std::vector<size_t> recv;  // by sender
};

/// Where an array lies in memory that every rank of the group reaches.
struct SharedArray {
  std::shared_ptr<const Windows> windows;  // nullptr: it lies in this rank's own memory
  uint32_t region = 0;                     // what the ranks call these windows
  uint64_t offset = 0;                     // from their beginning, in bytes; the same on every rank
  Span reach;                              // of the array: what every rank has mapped, in bytes
};

/// One collective, checked and complete: `algo` is not kAuto. But where peers read each other's inputs alone
/// (lends_input_only) kAuto means that the ranks find out in the operation whether all of them can.
struct CollectiveCall {
  Collective collective = Collective::kBarrier;
  Algo algo = Algo::kFlat;
  DType dtype = DType::kF32;
  DType wire = DType::kF32;
  ReduceOp op = ReduceOp::kSum;
  int root = 0;              // send and recv: the other rank; recv also kAnySource
  int tag = 0;               // send and recv
  const void* in = nullptr;  // may be equal to out; what else may overlap stands in algo/
  void* out = nullptr;
  /// Elements: of the message; of a block where there is one per rank (reduce_scatter, all_gather, gather, scatter,
  /// all_to_all).
  size_t count = 0;
  double factor = 1.0;                          // premul_sum: what this rank's elements are multiplied by
  std::shared_ptr<const BlockLengths> lengths;  // all_to_all with blocks of different lengths
  SharedArray shared_in;                        // kDirect: of in; kAuto: the same, where it is so on this rank
  SharedArray shared_out;                       // kDirect: of out
  /// all_reduce: both or none, instead of in and out; the same one: in place. Borrowed, as arrays are.
  const ChunkTable* in_table = nullptr;
  const ChunkTable* out_table = nullptr;
};

/// `call` as the executors run it: complex elements as twice as many of their components.
CollectiveCall in_components(CollectiveCall call);

/// Scales, element sizes and tile functions of `call`. Throws kInvalidArgument where (dtype, wire, op) has none.
HostKernels bind_kernels(const CollectiveCall& call, int world_size, const KernelTable& table);

/// How `call` is cut for this window layout.
ChunkPlan plan_call(const CollectiveCall& call, const WindowLayout& layout);

/// Runs this lane's part; false when op.failed.
bool run_lane(HostExec& exec, const CollectiveCall& call, const HostKernels& kernels, const ChunkPlan& plan);

/// Runs the whole call in the calling thread (one channel, one lane). Adds to *sent_bytes what it sent.
bool run_single_lane(HostContext& context, HostOp& op, const CollectiveCall& call, const KernelTable& table,
                     LaneScratch& scratch, uint64_t* sent_bytes);

/// The call in a group of one rank.
void run_alone(const CollectiveCall& call, const KernelTable& table);

/// out = what other ranks get to see of in / divisor, bit for bit: call's terms, encoded and decoded. divisor: of an
/// average over as many ranks, else 1. Throws as bind_kernels.
void quantize(CollectiveCall call, int divisor, const KernelTable& table);

}  // namespace dcomm
