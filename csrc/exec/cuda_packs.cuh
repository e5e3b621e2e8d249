// What the device's Kernels share: a collective's arrays, cut into packs, scaled and rounded. Floor: exec.
//
// The same bits as the host's tile functions (exec/host_tiles.h): sums in float32 in the same order, no fused
// multiply-add, true division, rounding to nearest even, canonical NaNs.
#pragma once

#include "base/dtype.h"
#include "exec/cuda_block_exec.cuh"
#include "exec/cuda_canonical.cuh"
#include "exec/cuda_elements.cuh"
#include "protocol/averaging.h"
#include "schedule/partition.h"

namespace dcomm {

/// User: element type of the arrays. Wire: of the slots. kRanks: the world size if known at compile time (2, 4 or
/// 8), else 0.
template <class User, class Wire, int kRanks, bool kDividesTerms>
class CudaPacks {
  static_assert(kRanks == 0 || kRanks == 2 || kRanks == 4 || kRanks == 8);

 public:
  DCOMM_DEVICE CudaPacks(const CudaArrays& arrays, float divisor)
      : in_(static_cast<const std::byte*>(arrays.in)),
        out_(static_cast<std::byte*>(arrays.out)),
        divisor_(divisor),
        // Exact for a power of two, where the product has the bits of the quotient.
        reciprocal_(kRanks == 0 || divisor == 1.0f ? 1.0f : 1.0f / kNonzeroRanks) {}

 protected:
  static constexpr bool kSameType = User::kDType == Wire::kDType;
  static constexpr bool kHalfWire = is_half(Wire::kDType);
  static constexpr int kUserBytes = sizeof(typename User::Stored);
  static constexpr int kPack = 16 / sizeof(typename Wire::Stored);
  static constexpr float kNonzeroRanks = kRanks == 0 ? 1.0f : static_cast<float>(kRanks);

  template <int kCount>
  using UserBlock = CudaBlock<User, kCount>;
  template <int kCount>
  using WireBlock = CudaBlock<Wire, kCount>;

  DCOMM_DEVICE const std::byte* source(Range range) const { return in_ + range.offset * kUserBytes; }
  DCOMM_DEVICE std::byte* target(Range range) const { return out_ + (range.offset - out_shift_) * kUserBytes; }

  /// User arrays may start anywhere; slots start at multiples of 16 bytes.
  template <int kInFlight, int kElements = kPack, class Exec, class Load, class Use>
  DCOMM_DEVICE static void for_each(Exec& exec, bool aligned, size_t count, const Load& load, const Use& use) {
    for_each_block<kInFlight, kElements>(exec, aligned, count, load, use);
  }
  DCOMM_DEVICE static bool is_aligned(const std::byte* a, const std::byte* b = nullptr) {
    return is_pack_aligned(a, b);
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
  DCOMM_DEVICE bool encodes_plainly() const { return kSameType && (!kDividesTerms || divisor_ == 1.0f); }

  /// sum: as the wire will store it, but for the rounding.
  template <int kCount>
  DCOMM_DEVICE void finish_sum(float (&sum)[kCount]) const {
    if constexpr (!kDividesTerms) divide(sum);
    if constexpr (!kHalfWire) {
      DCOMM_UNROLL
      for (int k = 0; k < kCount; ++k) sum[k] = f32_canonical(sum[k]);
    }
  }
  template <int kCount>
  DCOMM_DEVICE WireBlock<kCount> finished(float (&sum)[kCount]) const {
    finish_sum(sum);
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

  const std::byte* const in_;
  std::byte* const out_;
  const float divisor_;
  const float reciprocal_;
  size_t out_shift_ = 0;  // elements by which a result lands earlier than its range says
};

}  // namespace dcomm
