// What each kernel does, once it has an executor: an algorithm with its Kernels. Floor: launch.
//
// The same texts run on the GPU (cuda_kernels_*.cu) and on emulated blocks (tests/cc).
#pragma once

#include "algo/all_gather.h"
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
#include "algo/scatter.h"
#include "algo/send_recv.h"
#include "exec/cuda_block_kernels.cuh"
#include "exec/cuda_direct_kernels.cuh"
#include "exec/cuda_integer_kernels.cuh"
#include "exec/cuda_move_kernels.cuh"
#include "exec/cuda_pack_kernels.cuh"
#include "exec/cuda_packet_kernels.cuh"
#include "exec/cuda_reduce_kernels.cuh"
#include "launch/cuda_plan.h"

namespace dcomm {

/// A body that sums User arrays through Wire slots. Ranks: the world size if known at compile time, else 0.
template <class User, class Wire, int kRanks, Collective kCollective, Algo kAlgo = Algo::kFlat, bool kVariant = false>
struct CudaSumBody {
  static constexpr int kNumRanks = kRanks;
  static constexpr CudaKernelKey kKey{kCollective, kAlgo, kVariant, User::kDType, Wire::kDType};
  static constexpr bool kDividesTerms =
      divides_terms(User::kDType, Wire::kDType, kAlgo == Algo::kRing || kAlgo == Algo::kTree);
};

template <class User, class Wire, int kRanks>
struct TwoShotBody : CudaSumBody<User, Wire, kRanks, Collective::kAllReduce, Algo::kTwoShot> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    const CudaReduceKernels<User, Wire, kRanks, TwoShotBody::kDividesTerms> kernels(arrays, job.divisor);
    all_reduce_two_shot(exec, kernels, job.plan);
  }
};

/// For both sizes of blocks and all world sizes.
struct TwoShotBlocksBody {
  static constexpr int kNumRanks = 0;
  static constexpr CudaKernelKey kKey{Collective::kAllReduce, Algo::kTwoShot, false, DType::kF32, DType::kF8Block32};
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    if (job.wire == DType::kF8Block32) {
      all_reduce_two_shot(exec, CudaBlockKernels<32>(arrays, job.divisor), job.plan);
    } else {
      all_reduce_two_shot(exec, CudaBlockKernels<128>(arrays, job.divisor), job.plan);
    }
  }
};

template <class User, class Wire>
struct RingBody : CudaSumBody<User, Wire, 0, Collective::kAllReduce, Algo::kRing> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    const CudaKernels<User, Wire, 0, RingBody::kDividesTerms> kernels(arrays, job.divisor);
    all_reduce_ring(exec, kernels, job.plan);
  }
};

template <class User, class Wire>
struct TreeBody : CudaSumBody<User, Wire, 0, Collective::kAllReduce, Algo::kTree> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    const CudaKernels<User, Wire, 0, TreeBody::kDividesTerms> kernels(arrays, job.divisor);
    all_reduce_tree(exec, kernels, job.plan);
  }
};

template <class User, class Wire, int kRanks>
struct PacketsBody : CudaSumBody<User, Wire, kRanks, Collective::kAllReduce, Algo::kOneShot, true> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    const CudaPacketKernels<User, Wire, kRanks, PacketsBody::kDividesTerms> kernels(arrays, job.divisor);
    all_reduce_one_shot_packets(exec, kernels, job.plan);
  }
};

template <class User, class Wire>
struct OneShotBody : CudaSumBody<User, Wire, 0, Collective::kAllReduce, Algo::kOneShot> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    const CudaReduceKernels<User, Wire, 0, OneShotBody::kDividesTerms> kernels(arrays, job.divisor);
    all_reduce_one_shot(exec, kernels, job.plan);
  }
};

static_assert(kMaxCudaDirectRanks == kMaxLocalRanks);

/// job.arrays: of all ranks.
template <class Type, int kRanks>
struct DirectBody : CudaSumBody<Type, Type, kRanks, Collective::kAllReduce, Algo::kDirect> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays&) {
    const CudaDirectKernels<Type, kRanks, DirectBody::kDividesTerms> kernels(job.arrays, exec.rank(), job.divisor);
    all_reduce_direct(exec, kernels, job.plan);
  }
};
template <class Type, int kRanks>
struct PulledBody : CudaSumBody<Type, Type, kRanks, Collective::kAllReduce, Algo::kDirect, true> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays&) {
    const CudaDirectKernels<Type, kRanks, PulledBody::kDividesTerms> kernels(job.arrays, exec.rank(), job.divisor);
    all_reduce_pulled(exec, kernels, job.plan);
  }
};

template <class Type, int kRanks>
struct ReduceScatterBody : CudaSumBody<Type, Type, kRanks, Collective::kReduceScatter> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    const CudaReduceKernels<Type, Type, kRanks, ReduceScatterBody::kDividesTerms> kernels(arrays, job.divisor);
    reduce_scatter(exec, kernels, job.plan);
  }
};

template <class Type>
struct ReduceBody : CudaSumBody<Type, Type, 0, Collective::kReduce> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    const CudaReduceKernels<Type, Type, 0, ReduceBody::kDividesTerms> kernels(arrays, job.divisor);
    reduce(exec, kernels, job.plan, job.root);
  }
};

/// A body that sums integers of one width, or bool; for all world sizes.
template <class Element, Collective kCollective, Algo kAlgo = Algo::kFlat>
struct CudaIntegerBody {
  static constexpr int kNumRanks = 0;
  static constexpr CudaKernelKey kKey{kCollective, kAlgo, false, Element::kDType, Element::kDType};
};

template <class Element>
struct IntegerTwoShotBody : CudaIntegerBody<Element, Collective::kAllReduce, Algo::kTwoShot> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    all_reduce_two_shot(exec, CudaIntegerKernels<Element>(arrays), job.plan);
  }
};

template <class Element>
struct IntegerRingBody : CudaIntegerBody<Element, Collective::kAllReduce, Algo::kRing> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    all_reduce_ring(exec, CudaIntegerKernels<Element>(arrays), job.plan);
  }
};

template <class Element>
struct IntegerReduceScatterBody : CudaIntegerBody<Element, Collective::kReduceScatter> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    reduce_scatter(exec, CudaIntegerKernels<Element>(arrays), job.plan);
  }
};

template <class Element>
struct IntegerReduceBody : CudaIntegerBody<Element, Collective::kReduce> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    reduce(exec, CudaIntegerKernels<Element>(arrays), job.plan, job.root);
  }
};

/// A body for all types and world sizes.
template <Collective kCollective>
struct CudaMoveBody {
  static constexpr int kNumRanks = 0;
  static constexpr CudaKernelKey kKey{kCollective, Algo::kFlat, false, DType::kU8, DType::kU8};
};

struct BroadcastBody : CudaMoveBody<Collective::kBroadcast> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    broadcast(exec, CudaMoveKernels(arrays), job.plan, job.root);
  }
};

struct AllGatherBody : CudaMoveBody<Collective::kAllGather> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    all_gather(exec, CudaMoveKernels(arrays), job.plan);
  }
};

struct GatherBody : CudaMoveBody<Collective::kGather> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    gather(exec, CudaMoveKernels(arrays), job.plan, job.root);
  }
};

struct ScatterBody : CudaMoveBody<Collective::kScatter> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    scatter(exec, CudaMoveKernels(arrays), job.plan, job.root);
  }
};

struct AllToAllBody : CudaMoveBody<Collective::kAllToAll> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    const CudaEqualBlocks blocks{job.plan.count, job.plan.segment_count, job.plan.num_channels};
    all_to_all(exec, CudaMoveKernels(arrays), blocks);
  }
};

/// job.root sends its `in`, job.peer receives into its `out`; the other ranks have nothing to do. Each side may have
/// been launched by a process of its own, so the receiver compares what has come with what it wants.
struct SendBody : CudaMoveBody<Collective::kSend> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    if (exec.hears_of_failure()) return;
    const CudaMoveKernels kernels(arrays);
    const Envelope mine{job.plan.count, job.tag, job.dtype, {}};
    if (exec.rank() == job.root) {
      send(exec, kernels, job.plan, job.peer, mine);
      return;
    }
    Envelope theirs;
    if (exec.rank() != job.peer || !recv_envelope(exec, kernels, job.root, theirs)) return;
    if (!are_same(mine, theirs) && !mutated(Mutation::kBlockNoEnvelopeCheck)) {
      exec.refuse_message(job.root);
      return;
    }
    recv_data(exec, kernels, job.plan, job.root);
  }

 private:
  DCOMM_DEVICE static bool are_same(const Envelope& a, const Envelope& b) {
    return a.count == b.count && a.tag == b.tag && a.dtype == b.dtype;
  }
};

struct BarrierBody : CudaMoveBody<Collective::kBarrier> {
  DCOMM_DEVICE static void run(CudaBlockExec& exec, const CudaJob&, const CudaArrays&) { barrier(exec); }
};

}  // namespace dcomm
