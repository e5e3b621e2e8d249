// Which kernel serves a collective on a GPU, and how it is cut. Floor: launch (plain C++; no CUDA header).
#pragma once

#include "base/dtype.h"
#include "protocol/control.h"
#include "schedule/block_layout.h"
#include "schedule/partition.h"
#include "schedule/tree.h"

namespace dcomm {

/// The least part of a chunk for a block: a 16-byte pack for each thread of one warp. The blocks are there anyway.
inline constexpr size_t kCudaMinSegmentBytes = 512;

/// Of a rank, in slots: what is worth a flag, and what two_shot still keeps in L2.
inline constexpr size_t kCudaMinSlotBytes = 4096;
inline constexpr size_t kCudaMaxSlotBytes = size_t{128} << 10;
inline constexpr int kCudaDefaultChannels = 32;
/// Slots' worth of an array that a block of the direct all-reduce sums in one turn: it has no slot to fit in.
inline constexpr size_t kCudaDirectSlots = 16;
/// Ranks whose arrays travel as kernel arguments.
inline constexpr int kMaxCudaDirectRanks = 128;

inline bool is_cuda_slot_bytes(uint64_t slot_bytes) {
  return slot_bytes >= kCudaMinSlotBytes && slot_bytes % kCudaMinSlotBytes == 0 && slot_bytes <= uint64_t{1} << 30;
}

/// num_sharing: ranks on one GPU, whose blocks shall all be resident. most: of one rank; 0: as many as are of use.
inline int choose_cuda_channels(int resident_blocks, int num_sharing, int most = 0) {
  const int share = resident_blocks / num_sharing;
  const int wanted = most > 0 && most < kCudaDefaultChannels ? most : kCudaDefaultChannels;
  return share < 1 ? 1 : share < wanted ? share : wanted;
}

/// All slots that two_shot uses, of all ranks on a GPU, shall stay in L2 (docs/decisions.md); a rank that has one for
/// itself gets 64 KiB at least.
inline size_t choose_cuda_slot_bytes(size_t l2_bytes, int num_sharing, int world_size, int num_channels) {
  const size_t share =
      l2_bytes / 2 /
      (static_cast<size_t>(num_sharing) * static_cast<size_t>(num_channels) * 2 * static_cast<size_t>(world_size));
  size_t slot_bytes = num_sharing > 1 || world_size == 1 ? kCudaMinSlotBytes : kCudaMaxSlotBytes / 2;
  while (slot_bytes < kCudaMaxSlotBytes && slot_bytes * 2 <= share) slot_bytes *= 2;
  return slot_bytes;
}

/// Segments as large as a slot only where every channel gets one: a small message is spread over all channels.
/// Chunks, and with them every bit of the result, do not depend on this.
inline ChunkPlan cuda_plan(size_t count, int num_chunks, size_t element_bytes, size_t slot_count, int num_channels,
                           size_t align = kChunkAlign) {
  const size_t chunk = ceil_div(count, static_cast<size_t>(num_chunks));
  const size_t share = round_up(ceil_div(chunk, static_cast<size_t>(num_channels)), align);
  const size_t least = kCudaMinSegmentBytes / element_bytes;
  const size_t segment = share < least ? least : share;
  return ChunkPlan::make(count, num_chunks, min_size(segment, slot_count), num_channels, align);
}

/// A collective of a group, as it was asked for: enumerations of base/dtype.h and protocol/control.h.
struct CudaRequest {
  Collective collective = Collective::kAllReduce;
  Algo algo = Algo::kAuto;
  DType dtype = DType::kF32;
  DType wire = DType::kF32;
  size_t count = 0;     // as in CollectiveCall
  bool pulled = false;  // kDirect: each rank writes its own result only
};

/// What a group is like.
struct CudaShape {
  int world_size = 1;
  int num_channels = 1;
  size_t slot_bytes = 0;
  size_t packet_data_bytes = 0;  // of one sender's message on one channel
};

/// Integers wrap, and a sign changes no bit of a sum: they have one kernel for each width.
constexpr DType cuda_sum_dtype(DType dtype) { return dtype == DType::kU8 ? DType::kI8 : dtype; }
/// Blocks of either size have one for both.
constexpr DType cuda_wire_dtype(DType wire) { return is_block_scaled(wire) ? DType::kF8Block32 : cuda_sum_dtype(wire); }

/// Of integers and bool there are two_shot and ring alone: no packets, nothing direct.
constexpr bool has_cuda_algo(Algo algo, DType dtype) {
  return is_floating(dtype) || algo == Algo::kAuto || algo == Algo::kTwoShot || algo == Algo::kRing;
}

/// What distinguishes one kernel from another. Collectives that only move data have one for all types: of bytes.
struct CudaKernelKey {
  Collective collective = Collective::kAllReduce;
  Algo algo = Algo::kFlat;  // all_reduce only
  bool variant = false;     // one_shot: in packets, not in slots; direct: pulled
  DType dtype = DType::kU8;
  DType wire = DType::kU8;
};
constexpr bool operator==(const CudaKernelKey& a, const CudaKernelKey& b) {
  return a.collective == b.collective && a.algo == b.algo && a.variant == b.variant && a.dtype == b.dtype &&
         a.wire == b.wire;
}
constexpr bool is_in_packets(const CudaKernelKey& key) { return key.algo == Algo::kOneShot && key.variant; }

struct CudaChoice {
  CudaKernelKey key;
  ChunkPlan plan;
  int num_channels = 1;  // that take part
};

/// Where one message of packets on each channel carries it all.
inline bool fits_cuda_packets(const CudaRequest& request, const CudaShape& shape) {
  return request.count * dtype_bytes(request.wire) <= shape.packet_data_bytes * static_cast<size_t>(shape.num_channels);
}

/// In packets, of all ranks: one step beats two although it sends n/2 times as much, from what other libraries do
/// (64 KiB for eight ranks).
inline constexpr size_t kCudaMostPacketsBytes = size_t{512} << 10;

/// algo="auto": the first row that holds. No GPU has measured them yet; tools/gpu_check.sh times every algorithm.
struct CudaTuningRow {
  int most_ranks;           // 0: any number
  size_t most_total_bytes;  // on the wire, times ranks; 0: any number
  bool in_packets;          // only where one message of packets carries it all
  Algo algo;
};
inline constexpr CudaTuningRow kCudaTuning[] = {
    {1, 0, false, Algo::kTwoShot},  // alone: no step
    {0, kCudaMostPacketsBytes, true, Algo::kOneShot},
    // Two steps for any number of ranks, since a block's threads signal and poll all peers side by side. So the double
    // binary tree (2 log2 n steps) and the ring (2 (n - 1)) do not pay where every pair is directly connected, up to
    // the 128 ranks of one launch: docs/gpu.md.
    {0, 0, false, Algo::kTwoShot},
};

/// algo="auto" of arrays that all ranks reach, nbytes each: whether the sum is made where they lie. Two steps, as
/// two_shot has, and no copies. Pulled (the results are not reached) it moves as many bytes between 2 ranks, and more
/// from 3 on.
inline bool cuda_direct_pays(size_t nbytes, int world_size, bool pulled) {
  if (world_size < 2 || world_size > kMaxCudaDirectRanks) return false;
  if (nbytes * static_cast<size_t>(world_size) <= kCudaMostPacketsBytes) return false;
  return !pulled || world_size == 2;
}

/// Whether arrays can be summed where they lie.
inline bool has_cuda_direct(DType dtype, ReduceOp op) {
  return (dtype == DType::kF32 || is_half(dtype)) && (op == ReduceOp::kSum || op == ReduceOp::kAvg);
}

inline Algo choose_cuda_algo(const CudaRequest& request, const CudaShape& shape) {
  // A ring of one has no hops and nothing to wait for.
  if (request.algo != Algo::kAuto && shape.world_size > 1) return request.algo;
  if (is_block_scaled(request.wire)) return Algo::kTwoShot;
  const size_t total = request.count * dtype_bytes(request.wire) * static_cast<size_t>(shape.world_size);
  for (const CudaTuningRow& row : kCudaTuning) {
    if (row.most_ranks != 0 && shape.world_size > row.most_ranks) continue;
    if (row.most_total_bytes != 0 && total > row.most_total_bytes) continue;
    if (row.in_packets && !fits_cuda_packets(request, shape)) continue;
    if (!has_cuda_algo(row.algo, request.dtype)) continue;
    return row.algo;
  }
  return Algo::kTwoShot;
}

inline CudaChoice choose_cuda(const CudaRequest& request, const CudaShape& shape) {
  CudaChoice choice;
  choice.key.collective = request.collective;
  choice.num_channels = shape.num_channels;
  const size_t dtype_size = dtype_bytes(request.dtype);
  if (request.collective == Collective::kBarrier) {
    choice.num_channels = 1;
    choice.plan = ChunkPlan::make(0, 1, kChunkAlign, 1);
    return choice;
  }
  if (!reduces(request.collective)) {
    choice.plan = cuda_plan(request.count * dtype_size, 1, 1, shape.slot_bytes, shape.num_channels);
    return choice;
  }
  choice.key.dtype = cuda_sum_dtype(request.dtype);
  choice.key.wire = cuda_wire_dtype(request.wire);
  int num_chunks = 1;
  size_t slot_bytes = shape.slot_bytes;
  if (request.collective == Collective::kAllReduce) {
    choice.key.algo = choose_cuda_algo(request, shape);
    const bool packets = choice.key.algo == Algo::kOneShot && fits_cuda_packets(request, shape);
    const bool pulled = choice.key.algo == Algo::kDirect && request.pulled;
    choice.key.variant = packets || pulled;
    if (choice.key.algo != Algo::kOneShot && !pulled) num_chunks = shape.world_size;
    if (choice.key.algo == Algo::kTree) num_chunks = kNumTrees;
    if (packets) slot_bytes = shape.packet_data_bytes;
    if (choice.key.algo == Algo::kDirect) slot_bytes *= kCudaDirectSlots;
  }
  choice.plan = cuda_plan(request.count, num_chunks, dtype_bytes(request.wire), slot_capacity(request.wire, slot_bytes),
                          shape.num_channels, chunk_align_of(request.wire));
  return choice;
}

}  // namespace dcomm
