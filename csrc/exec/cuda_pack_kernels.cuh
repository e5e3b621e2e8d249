// The device's Kernels for moving arrays through slots, with a sum at every hop: ring and tree. Floor: exec.
//
// Packs stay as they are stored until they are summed: unpacking all of them first would cost more registers than a
// thread has. A pack is 16 bytes of the wire type.
#pragma once

#include "exec/cuda_bytes.cuh"
#include "exec/cuda_packs.cuh"

namespace dcomm {

template <class User, class Wire, int kRanks, bool kDividesTerms>
class CudaKernels : public CudaPacks<User, Wire, kRanks, kDividesTerms> {
  using Base = CudaPacks<User, Wire, kRanks, kDividesTerms>;
  // Packs in flight per thread: as many as fit the 128 registers with no spill on any architecture (make check-cuda).
  static constexpr int kUnroll = Base::kSameType ? 4 : 2;
  static constexpr int kAddUnroll = 2;
  static constexpr int kCombineElements = 4;  // a tree keeps more addresses alive than a ring

 public:
  using Base::Base;

  template <class Exec>
  DCOMM_DEVICE void encode(Exec& exec, std::byte* slot, Range range) const {
    const std::byte* const from = source(range);
    const bool aligned = is_aligned(from);
    if (this->encodes_plainly()) {
      Base::template for_each<kUnroll>(
          exec, aligned, range.count, [&](auto width, uint32_t i) { return UserBlock<width.value>::load(from, i); },
          [&](auto, uint32_t i, const auto& own) { own.store(slot, i); });
      return;
    }
    Base::template for_each<kUnroll>(
        exec, aligned, range.count, [&](auto width, uint32_t i) { return UserBlock<width.value>::load(from, i); },
        [&](auto width, uint32_t i, const auto& own) {
          float value[width.value];
          own.widen(value);
          this->divide_term(value);
          WireBlock<width.value>::narrow(value).store(slot, i);
        });
  }

  template <class Exec>
  DCOMM_DEVICE void decode(Exec& exec, Range range, const std::byte* slot) const {
    std::byte* const to = target(range);
    Base::template for_each<kUnroll>(
        exec, is_aligned(to), range.count,
        [&](auto width, uint32_t i) { return WireBlock<width.value>::load(slot, i); },
        [&](auto width, uint32_t i, const auto& wire) { Base::template to_user<width.value>(wire).store(to, i); });
  }

  template <class Exec>
  DCOMM_DEVICE void forward(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    std::byte* const to = target(range);
    Base::template for_each<kUnroll>(
        exec, is_aligned(to), range.count,
        [&](auto width, uint32_t i) { return WireBlock<width.value>::load(slot, i); },
        [&](auto width, uint32_t i, const auto& wire) {
          wire.store(next, i);
          Base::template to_user<width.value>(wire).store(to, i);
        });
  }

  template <class Exec>
  DCOMM_DEVICE void copy(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    move_bytes<16>(exec, next, slot, range.count * sizeof(typename Wire::Stored));
  }

  template <class Exec>
  DCOMM_DEVICE void accumulate(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    add_own<false>(exec, next, slot, range);
  }

  template <class Exec>
  DCOMM_DEVICE void finish(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    add_own<true>(exec, next, slot, range);
  }

  /// num_from, num_to: at most 2.
  template <class Exec, class From, class To>
  DCOMM_DEVICE void combine(Exec& exec, Range range, From&& from, int num_from, To&& to, int num_to,
                            bool is_final) const {
    const std::byte* const mine = source(range);
    std::byte* const result = target(range);
    const std::byte* const first = num_from > 0 ? from(0) : nullptr;
    const std::byte* const second = num_from > 1 ? from(1) : nullptr;
    std::byte* const left = num_to > 0 ? to(0) : nullptr;
    std::byte* const right = num_to > 1 ? to(1) : nullptr;
    Base::template for_each<1, kCombineElements>(
        exec, is_aligned(mine, is_final ? result : nullptr), range.count,
        [&](auto width, uint32_t i) {
          Family<width.value> terms;
          terms.own = UserBlock<width.value>::load(mine, i);
          if (first != nullptr) terms.first = WireBlock<width.value>::load(first, i);
          if (second != nullptr) terms.second = WireBlock<width.value>::load(second, i);
          return terms;
        },
        [&](auto width, uint32_t i, const auto& terms) {
          float sum[width.value];
          terms.own.widen(sum);
          this->divide_term(sum);
          if (first != nullptr) add_wire(sum, terms.first);
          if (second != nullptr) add_wire(sum, terms.second);
          if (is_final) this->finish_sum(sum);
          const auto wire = WireBlock<width.value>::narrow(sum);
          if (left != nullptr) wire.store(left, i);
          if (right != nullptr) wire.store(right, i);
          if (is_final) Base::template to_user<width.value>(wire).store(result, i);
        });
  }

 protected:
  using Base::is_aligned;
  using Base::source;
  using Base::target;
  template <int kCount>
  using UserBlock = CudaBlock<User, kCount>;
  template <int kCount>
  using WireBlock = CudaBlock<Wire, kCount>;

 private:
  /// One hop's inputs.
  template <int kCount>
  struct Pair {
    WireBlock<kCount> partial;
    UserBlock<kCount> own;
  };
  /// My terms and my children's sums in a tree.
  template <int kCount>
  struct Family {
    UserBlock<kCount> own;
    WireBlock<kCount> first, second;
  };

  template <int kCount>
  DCOMM_DEVICE static void add_wire(float (&sum)[kCount], const WireBlock<kCount>& wire) {
    float value[kCount];
    wire.widen(value);
    add_to(sum, value);
  }

  /// One hop of the ring: the travelling partial sum, then my term, which is not rounded first.
  template <bool kIsFinal, class Exec>
  DCOMM_DEVICE void add_own(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    const std::byte* const mine = source(range);
    std::byte* const to = target(range);
    Base::template for_each<kAddUnroll>(
        exec, is_aligned(mine, kIsFinal ? to : nullptr), range.count,
        [&](auto width, uint32_t i) {
          return Pair<width.value>{WireBlock<width.value>::load(slot, i), UserBlock<width.value>::load(mine, i)};
        },
        [&](auto width, uint32_t i, const auto& pair) {
          float sum[width.value];
          float own[width.value];
          pair.partial.widen(sum);
          pair.own.widen(own);
          this->divide_term(own);
          add_to(sum, own);
          if constexpr (kIsFinal) {
            const WireBlock<width.value> result = this->finished(sum);
            result.store(next, i);
            Base::template to_user<width.value>(result).store(to, i);
          } else {
            WireBlock<width.value>::narrow(sum).store(next, i);
          }
        });
  }
};

}  // namespace dcomm
