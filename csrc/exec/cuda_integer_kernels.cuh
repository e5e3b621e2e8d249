// The device's Kernels for sums of integers and bool: two_shot, ring, reduce_scatter, reduce. Floor: exec.
//
// Every order of summation gives the same bits, so there is no tree of terms to keep in registers: a sum stays one
// pack, and one kernel serves any number of ranks.
#pragma once

#include <type_traits>

#include "exec/cuda_bytes.cuh"
#include "exec/cuda_integers.cuh"
#include "exec/cuda_packs.cuh"

namespace dcomm {

template <class Element>
class CudaIntegerKernels : public CudaPacks<Element, Element, 0, false> {
  using Base = CudaPacks<Element, Element, 0, false>;
  // Packs in flight per thread, as in cuda_pack_kernels.cuh: four of them and of their partners spilled on sm_100.
  static constexpr int kUnroll = 4;
  static constexpr int kAddUnroll = 2;
  template <int kCount>
  using Block = CudaBlock<Element, kCount>;

 public:
  DCOMM_DEVICE explicit CudaIntegerKernels(const CudaArrays& arrays) : Base(arrays, 1.0f) {}

  DCOMM_DEVICE CudaIntegerKernels shifted_out(size_t offset) const {
    CudaIntegerKernels shifted(*this);
    shifted.out_shift_ += offset;
    return shifted;
  }

  template <class Exec>
  DCOMM_DEVICE void encode(Exec& exec, std::byte* slot, Range range) const {
    move_bytes<16>(exec, slot, source(range), range.count * Base::kUserBytes);
  }
  template <class Exec>
  DCOMM_DEVICE void decode(Exec& exec, Range range, const std::byte* slot) const {
    move_bytes<16>(exec, target(range), slot, range.count * Base::kUserBytes);
  }

  template <class Exec>
  DCOMM_DEVICE void forward(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    std::byte* const to = target(range);
    Base::template for_each<kUnroll>(
        exec, is_aligned(to), range.count, [&](auto width, uint32_t i) { return Block<width.value>::load(slot, i); },
        [&](auto, uint32_t i, const auto& result) {
          result.store(next, i);
          result.store(to, i);
        });
  }

  template <class Exec>
  DCOMM_DEVICE void accumulate(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    add_own<false>(exec, next, slot, range);
  }
  template <class Exec>
  DCOMM_DEVICE void finish(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    add_own<true>(exec, next, slot, range);
  }

  /// Rank by rank, each for kUnroll packs of a lane at once. to: NoOutputs where the sum stays here.
  template <class Exec, class From, class To>
  DCOMM_DEVICE void reduce_canonical(Exec& exec, Range range, From&& from, To&& to) const {
    const std::byte* const mine = source(range);
    std::byte* const result = target(range);
    const auto for_each_peer = [&](const auto& f) {
      DCOMM_ROLLED
      for (int peer = 0; peer < exec.world_size(); ++peer) {
        if (peer != exec.rank()) f(peer);
      }
    };
    for_each_blocks<kUnroll, Base::kPack>(
        exec, is_aligned(mine, result), range.count, [&](auto width, const auto& for_each_of_mine) {
          using Sum = Block<decltype(width)::value>;
          Sum sums[kUnroll];
          for_each_of_mine([&](int k, uint32_t i) { sums[k] = Sum::load(mine, i); });
          for_each_peer([&](int peer) {
            const std::byte* const slot = from(peer);
            Sum terms[kUnroll];
            for_each_of_mine([&](int k, uint32_t i) { terms[k] = Sum::load(slot, i); });
            for_each_of_mine([&](int k, uint32_t) { add_integers(sums[k], terms[k]); });
          });
          if constexpr (!std::is_same_v<std::decay_t<To>, NoOutputs>) {
            for_each_peer([&](int peer) {
              std::byte* const slot = to(peer);
              for_each_of_mine([&](int k, uint32_t i) { sums[k].store(slot, i); });
            });
          }
          for_each_of_mine([&](int k, uint32_t i) { sums[k].store(result, i); });
        });
  }

 private:
  using Base::is_aligned;
  using Base::source;
  using Base::target;

  /// One hop's inputs.
  template <int kCount>
  struct Pair {
    Block<kCount> partial, own;
  };

  template <bool kIsFinal, class Exec>
  DCOMM_DEVICE void add_own(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    const std::byte* const mine = source(range);
    std::byte* const to = target(range);
    Base::template for_each<kAddUnroll>(
        exec, is_aligned(mine, kIsFinal ? to : nullptr), range.count,
        [&](auto width, uint32_t i) {
          return Pair<width.value>{Block<width.value>::load(slot, i), Block<width.value>::load(mine, i)};
        },
        [&](auto, uint32_t i, const auto& pair) {
          auto sum = pair.partial;
          add_integers(sum, pair.own);
          sum.store(next, i);
          if constexpr (kIsFinal) sum.store(to, i);
        });
  }
};

}  // namespace dcomm
