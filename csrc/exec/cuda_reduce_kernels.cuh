// The device's Kernels for the canonical sum of all ranks' slots: two_shot, one_shot, reduce_scatter, reduce.
// Floor: exec.
#pragma once

#include <type_traits>

#include "exec/cuda_pack_kernels.cuh"

namespace dcomm {

template <class User, class Wire, int kRanks, bool kDividesTerms>
class CudaReduceKernels : public CudaKernels<User, Wire, kRanks, kDividesTerms> {
  using Base = CudaKernels<User, Wire, kRanks, kDividesTerms>;
  static constexpr int kReduceUnroll = kRanks == 2 ? 4 : kRanks == 4 ? 2 : 1;

 public:
  using Base::Base;

  DCOMM_DEVICE CudaReduceKernels shifted_out(size_t offset) const {
    CudaReduceKernels shifted(*this);
    shifted.out_shift_ += offset;
    return shifted;
  }

  /// to: NoOutputs where the sum stays here.
  template <class Exec, class From, class To>
  DCOMM_DEVICE void reduce_canonical(Exec& exec, Range range, From&& from, To&& to) const {
    if constexpr (kRanks == 0) {
      reduce_any(exec, range, from, to);
    } else {
      reduce_unrolled(exec, range, from, to);
    }
  }

 private:
  using Base::is_aligned;
  using Base::source;
  using Base::target;
  template <int kCount>
  using UserBlock = CudaBlock<User, kCount>;
  template <int kCount>
  using WireBlock = CudaBlock<Wire, kCount>;

  /// My term and, at k - 1, that of rank (mine xor k).
  template <int kCount>
  struct Terms {
    UserBlock<kCount> own;
    WireBlock<kCount> others[kRanks == 0 ? 1 : kRanks - 1];
  };

  template <class Exec, class From, class To>
  DCOMM_DEVICE void reduce_unrolled(Exec& exec, Range range, const From& from, const To& to) const {
    constexpr bool kSends = !std::is_same_v<To, NoOutputs>;
    const std::byte* const mine = source(range);
    std::byte* const result = target(range);
    // Position p xor rank instead of p: exchanging the two sides of additions leaves every bit of the balanced
    // tree's sum, and makes my own term the first one.
    const std::byte* inputs[kRanks - 1];
    std::byte* outputs[kSends ? kRanks - 1 : 1];
    DCOMM_UNROLL
    for (int k = 1; k < kRanks; ++k) {
      inputs[k - 1] = from(exec.rank() ^ k);
      if constexpr (kSends) outputs[k - 1] = to(exec.rank() ^ k);
    }
    Base::template for_each<kReduceUnroll>(
        exec, is_aligned(mine, result), range.count,
        [&](auto width, uint32_t i) {
          Terms<width.value> terms;
          terms.own = UserBlock<width.value>::load(mine, i);
          DCOMM_UNROLL
          for (int k = 1; k < kRanks; ++k) terms.others[k - 1] = WireBlock<width.value>::load(inputs[k - 1], i);
          return terms;
        },
        [&](auto width, uint32_t i, const auto& terms) {
          constexpr int kCount = decltype(width)::value;
          const WireBlock<kCount> own = Base::template own_term<kCount>(terms.own);
          float sum[kCount];
          sum_balanced<0, kRanks>(
              sum, [&](int k, float (&value)[kCount]) { (k == 0 ? own : terms.others[k - 1]).widen(value); });
          const WireBlock<width.value> wire = this->finished(sum);
          if constexpr (kSends) {
            DCOMM_UNROLL
            for (int k = 1; k < kRanks; ++k) wire.store(outputs[k - 1], i);
          }
          Base::template to_user<width.value>(wire).store(result, i);
        });
  }

  template <class Exec, class From, class To>
  DCOMM_DEVICE void reduce_any(Exec& exec, Range range, const From& from, const To& to) const {
    const std::byte* const mine = source(range);
    std::byte* const result = target(range);
    // Four elements at a time: six levels of eight would fill the registers.
    Base::template for_each<1, 4>(
        exec, is_aligned(mine, result), range.count,
        [&](auto width, uint32_t i) { return UserBlock<width.value>::load(mine, i); },
        [&](auto width, uint32_t i, const auto& user) {
          constexpr int kCount = decltype(width)::value;
          const WireBlock<kCount> own = Base::template own_term<kCount>(user);
          float sum[kCount];
          sum_canonical<kCount>(
              exec.world_size(),
              [&](int rank, float (&value)[kCount]) {
                const WireBlock<kCount> term = rank == exec.rank() ? own : WireBlock<kCount>::load(from(rank), i);
                term.widen(value);
              },
              sum);
          const WireBlock<kCount> wire = this->finished(sum);
          if constexpr (!std::is_same_v<To, NoOutputs>) {
            DCOMM_ROLLED
            for (int peer = 0; peer < exec.world_size(); ++peer) {
              if (peer != exec.rank()) wire.store(to(peer), i);
            }
          }
          Base::template to_user<kCount>(wire).store(result, i);
        });
  }
};

}  // namespace dcomm
