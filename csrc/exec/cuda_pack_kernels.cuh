// The device's Kernels: an all-reduce's arrays, moved and summed in 16-byte packs. Floor: exec.
//
// The same bits as the host's tile functions (exec/host_tiles.h): sums in float32 in the same order, no fused
// multiply-add, true division, rounding to nearest even, canonical NaNs. Packs stay as they are stored until they
// are summed: unpacking all of them first would cost more registers than a thread has.
// A pack is 16 bytes of the wire type. User arrays that do not start at a multiple of 16 bytes, and the elements
// after a range's last whole pack, go one element at a time, so nothing beyond the user's arrays is touched.
#pragma once

#include "base/dtype.h"
#include "exec/cuda_block_exec.cuh"
#include "exec/cuda_elements.cuh"
#include "protocol/averaging.h"
#include "schedule/partition.h"

namespace dcomm {

/// User: element type of the arrays. Wire: of the slots. kRanks: the world size if known at compile time (2, 4 or
/// 8), else 0.
template <class User, class Wire, int kRanks, bool kDividesTerms>
class CudaKernels {
  static_assert(kRanks == 0 || kRanks == 2 || kRanks == 4 || kRanks == 8);
  static constexpr bool kSameType = User::kDType == Wire::kDType;
  static constexpr bool kHalfWire = is_half(Wire::kDType);
  static constexpr int kUserBytes = sizeof(typename User::Stored);
  static constexpr int kPack = 16 / sizeof(typename Wire::Stored);
  // Packs in flight per thread: as many as fit the 128 registers with no spill on any architecture (make check-cuda).
  static constexpr int kUnroll = kSameType ? 4 : 2;
  static constexpr int kAddUnroll = 2;
  static constexpr int kReduceUnroll = kRanks == 2 ? 4 : kRanks == 4 ? 2 : 1;

 public:
  DCOMM_DEVICE CudaKernels(const CudaArrays& arrays, float divisor)
      : in_(static_cast<const std::byte*>(arrays.in)),
        out_(static_cast<std::byte*>(arrays.out)),
        divisor_(divisor),
        // Exact for a power of two, where the product has the bits of the quotient.
        reciprocal_(kRanks == 0 || divisor == 1.0f ? 1.0f : 1.0f / kNonzeroRanks),
        aligned_(((reinterpret_cast<uintptr_t>(arrays.in) | reinterpret_cast<uintptr_t>(arrays.out)) & 15) == 0) {}

  template <class Exec>
  DCOMM_DEVICE void encode(Exec& exec, std::byte* slot, Range range) const {
    const std::byte* const from = source(range);
    if (kSameType && (!kDividesTerms || divisor_ == 1.0f)) {
      for_each<kUnroll>(
          exec, range.count, [&](auto width, uint32_t i) { return UserBlock<width.value>::load(from, i); },
          [&](auto, uint32_t i, const auto& own) { own.store(slot, i); });
      return;
    }
    for_each<kUnroll>(
        exec, range.count, [&](auto width, uint32_t i) { return UserBlock<width.value>::load(from, i); },
        [&](auto width, uint32_t i, const auto& own) {
          float value[width.value];
          own.widen(value);
          divide_term(value);
          WireBlock<width.value>::narrow(value).store(slot, i);
        });
  }

  template <class Exec>
  DCOMM_DEVICE void decode(Exec& exec, Range range, const std::byte* slot) const {
    std::byte* const to = target(range);
    for_each<kUnroll>(
        exec, range.count, [&](auto width, uint32_t i) { return WireBlock<width.value>::load(slot, i); },
        [&](auto width, uint32_t i, const auto& wire) { to_user<width.value>(wire).store(to, i); });
  }

  template <class Exec>
  DCOMM_DEVICE void forward(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    std::byte* const to = target(range);
    for_each<kUnroll>(
        exec, range.count, [&](auto width, uint32_t i) { return WireBlock<width.value>::load(slot, i); },
        [&](auto width, uint32_t i, const auto& wire) {
          wire.store(next, i);
          to_user<width.value>(wire).store(to, i);
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

  template <class Exec, class From, class To>
  DCOMM_DEVICE void reduce_canonical(Exec& exec, Range range, From&& from, To&& to) const {
    if constexpr (kRanks == 0) {
      reduce_any(exec, range, from, to);
    } else {
      reduce_unrolled(exec, range, from, to);
    }
  }

 private:
  static constexpr float kNonzeroRanks = kRanks == 0 ? 1.0f : static_cast<float>(kRanks);

  template <int kCount>
  using UserBlock = CudaBlock<User, kCount>;
  template <int kCount>
  using WireBlock = CudaBlock<Wire, kCount>;

  template <int kCount>
  struct Width {
    static constexpr int value = kCount;
  };

  /// One hop's inputs.
  template <int kCount>
  struct Pair {
    WireBlock<kCount> partial;
    UserBlock<kCount> own;
  };
  /// My term and, at k - 1, that of rank (mine xor k).
  template <int kCount>
  struct Terms {
    UserBlock<kCount> own;
    WireBlock<kCount> others[kRanks == 0 ? 1 : kRanks - 1];
  };

  DCOMM_DEVICE const std::byte* source(Range range) const { return in_ + range.offset * kUserBytes; }
  DCOMM_DEVICE std::byte* target(Range range) const { return out_ + range.offset * kUserBytes; }

  /// Whole packs, then single elements. Ranges start at multiples of kChunkAlign elements, so one look at the
  /// arrays' addresses is enough.
  template <int kInFlight, int kElements = kPack, class Exec, class Load, class Use>
  DCOMM_DEVICE void for_each(Exec& exec, size_t count, const Load& load, const Use& use) const {
    const uint32_t num_packs = aligned_ ? static_cast<uint32_t>(count / kElements) : 0;
    exec.template for_each_pack<kInFlight>(
        num_packs, [&](uint32_t i) { return load(Width<kElements>{}, i); },
        [&](uint32_t i, const auto& loaded) { use(Width<kElements>{}, i, loaded); });
    const uint32_t first = num_packs * kElements;
    exec.template for_each_pack<1>(
        static_cast<uint32_t>(count) - first, [&](uint32_t i) { return load(Width<1>{}, first + i); },
        [&](uint32_t i, const auto& loaded) { use(Width<1>{}, first + i, loaded); });
  }

  template <int kCount>
  DCOMM_DEVICE void divide(float (&value)[kCount]) const {
    if constexpr (kRanks != 0) {
      DCOMM_UNROLL
      for (int k = 0; k < kCount; ++k) value[k] = value[k] * reciprocal_;
    } else {
      if (divisor_ == 1.0f) return;
      DCOMM_UNROLL
      for (int k = 0; k < kCount; ++k) value[k] = gpu::divide(value[k], divisor_);
    }
  }
  template <int kCount>
  DCOMM_DEVICE void divide_term(float (&value)[kCount]) const {
    if constexpr (kDividesTerms) divide(value);
  }

  /// A result as the wire stores it.
  template <int kCount>
  DCOMM_DEVICE WireBlock<kCount> finished(float (&sum)[kCount]) const {
    if constexpr (!kDividesTerms) divide(sum);
    if constexpr (!kHalfWire) {
      DCOMM_UNROLL
      for (int k = 0; k < kCount; ++k) sum[k] = f32_canonical(sum[k]);
    }
    return WireBlock<kCount>::narrow(sum);
  }

  template <int kCount>
  DCOMM_DEVICE static UserBlock<kCount> to_user(const WireBlock<kCount>& wire) {
    if constexpr (kSameType) {
      return wire;
    } else {
      float value[kCount];
      wire.widen(value);
      if constexpr (Wire::kDType == DType::kF16) {  // the conversion makes its own kind of NaN
        DCOMM_UNROLL
        for (int k = 0; k < kCount; ++k) value[k] = f32_canonical(value[k]);
      }
      return UserBlock<kCount>::narrow(value);
    }
  }

  /// One hop of the ring: the travelling partial sum, then my term, which is not rounded first.
  template <bool kIsFinal, class Exec>
  DCOMM_DEVICE void add_own(Exec& exec, std::byte* next, const std::byte* slot, Range range) const {
    const std::byte* const mine = source(range);
    std::byte* const to = target(range);
    for_each<kAddUnroll>(
        exec, range.count,
        [&](auto width, uint32_t i) {
          return Pair<width.value>{WireBlock<width.value>::load(slot, i), UserBlock<width.value>::load(mine, i)};
        },
        [&](auto width, uint32_t i, const auto& pair) {
          float sum[width.value];
          float own[width.value];
          pair.partial.widen(sum);
          pair.own.widen(own);
          divide_term(own);
          add_to(sum, own);
          if constexpr (kIsFinal) {
            const WireBlock<width.value> result = finished(sum);
            result.store(next, i);
            to_user<width.value>(result).store(to, i);
          } else {
            WireBlock<width.value>::narrow(sum).store(next, i);
          }
        });
  }

  /// My term as the others' arrive: through the wire, so that an element's terms do not depend on its owner.
  template <int kCount>
  DCOMM_DEVICE WireBlock<kCount> own_term(const UserBlock<kCount>& own) const {
    if constexpr (kSameType && !kDividesTerms) {
      return own;
    } else {
      float value[kCount];
      own.widen(value);
      divide_term(value);
      return WireBlock<kCount>::narrow(value);
    }
  }

  template <class Exec, class From, class To>
  DCOMM_DEVICE void reduce_unrolled(Exec& exec, Range range, const From& from, const To& to) const {
    const std::byte* const mine = source(range);
    std::byte* const result = target(range);
    // Position p xor rank instead of p: exchanging the two sides of additions leaves every bit of the balanced
    // tree's sum, and makes my own term the first one.
    const std::byte* inputs[kRanks - 1];
    std::byte* outputs[kRanks - 1];
    DCOMM_UNROLL
    for (int k = 1; k < kRanks; ++k) {
      inputs[k - 1] = from(exec.rank() ^ k);
      outputs[k - 1] = to(exec.rank() ^ k);
    }
    for_each<kReduceUnroll>(
        exec, range.count,
        [&](auto width, uint32_t i) {
          Terms<width.value> terms;
          terms.own = UserBlock<width.value>::load(mine, i);
          DCOMM_UNROLL
          for (int k = 1; k < kRanks; ++k) terms.others[k - 1] = WireBlock<width.value>::load(inputs[k - 1], i);
          return terms;
        },
        [&](auto width, uint32_t i, const auto& terms) {
          constexpr int kCount = decltype(width)::value;
          const WireBlock<kCount> own = own_term<kCount>(terms.own);
          float sum[kCount];
          sum_balanced<0, kRanks>(
              sum, [&](int k, float (&value)[kCount]) { (k == 0 ? own : terms.others[k - 1]).widen(value); });
          const WireBlock<width.value> wire = finished(sum);
          DCOMM_UNROLL
          for (int k = 1; k < kRanks; ++k) wire.store(outputs[k - 1], i);
          to_user<width.value>(wire).store(result, i);
        });
  }

  template <class Exec, class From, class To>
  DCOMM_DEVICE void reduce_any(Exec& exec, Range range, const From& from, const To& to) const {
    const std::byte* const mine = source(range);
    std::byte* const result = target(range);
    // Four elements at a time: six levels of eight would fill the registers.
    for_each<1, 4>(
        exec, range.count, [&](auto width, uint32_t i) { return UserBlock<width.value>::load(mine, i); },
        [&](auto width, uint32_t i, const auto& own) {
          float sum[width.value];
          sum_any<width.value>(exec, own_term<width.value>(own), i, from, sum);
          const WireBlock<width.value> wire = finished(sum);
          DCOMM_ROLLED
          for (int peer = 0; peer < exec.world_size(); ++peer) {
            if (peer != exec.rank()) wire.store(to(peer), i);
          }
          to_user<width.value>(wire).store(result, i);
        });
  }

  template <int kCount, class Exec, class From>
  DCOMM_DEVICE static void sum_any(Exec& exec, const WireBlock<kCount>& own, uint32_t i, const From& from,
                                   float (&sum)[kCount]) {
    constexpr int kGroup = CudaCanonicalSum<kCount>::kGroup;
    CudaCanonicalSum<kCount> total;
    int first = 0;
    DCOMM_ROLLED
    for (;; first += kGroup) {
      const int num = exec.world_size() - first;  // terms from here on
      const auto get_term = [&](int k, float (&value)[kCount]) {
        const WireBlock<kCount> term = first + k == exec.rank() ? own : WireBlock<kCount>::load(from(first + k), i);
        term.widen(value);
      };
      if (num >= kGroup) {
        sum_balanced<0, kGroup>(sum, get_term);
        total.push(sum);
        continue;
      }
      if (num >= 2) {
        sum_balanced<0, 2>(sum, get_term);
      } else if (num == 1) {
        get_term(0, sum);
      }
      if (num == 3) {
        float last[kCount];
        get_term(2, last);
        add_to(sum, last);
      }
      total.finish(sum, num > 0);
      return;
    }
  }

  const std::byte* const in_;
  std::byte* const out_;
  const float divisor_;
  const float reciprocal_;
  const bool aligned_;
};

}  // namespace dcomm
