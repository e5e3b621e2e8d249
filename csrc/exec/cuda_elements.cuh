// How elements are stored on the device: types, and blocks of them. Floor: exec.
//
// Conversions give the bits of base/half.h: the instructions round as it does, but have NaNs of their own.
#pragma once

#include "base/dtype.h"
#include "base/half.h"
#include "exec/cuda_intrinsics.cuh"

namespace dcomm {

// ---- Element types. ----

struct CudaF32 {
  using Stored = uint32_t;
  static constexpr DType kDType = DType::kF32;
  static constexpr int kPerWord = 1;
  DCOMM_DEVICE static void widen(uint32_t word, float* value) { value[0] = f32_from_bits(word); }
  DCOMM_DEVICE static uint32_t narrow(const float* value) { return f32_bits(value[0]); }
};

struct CudaBF16 {
  using Stored = uint16_t;
  static constexpr DType kDType = DType::kBF16;
  static constexpr int kPerWord = 2;
  DCOMM_DEVICE static void widen(uint32_t word, float* value) {
    value[0] = f32_from_bits(word << 16);
    value[1] = f32_from_bits(word & 0xffff0000u);
  }
  DCOMM_DEVICE static uint32_t narrow(const float* value) {
    uint32_t word = gpu::narrow_bf16x2(value[0], value[1]);
    if (value[0] != value[0]) word = (word & 0xffff0000u) | kBF16QuietNan;
    if (value[1] != value[1]) word = (word & 0x0000ffffu) | (static_cast<uint32_t>(kBF16QuietNan) << 16);
    return word;
  }
};

struct CudaF16 {
  using Stored = uint16_t;
  static constexpr DType kDType = DType::kF16;
  static constexpr int kPerWord = 2;
  DCOMM_DEVICE static void widen(uint32_t word, float* value) {
    value[0] = gpu::widen_f16(static_cast<uint16_t>(word & 0xffffu));
    value[1] = gpu::widen_f16(static_cast<uint16_t>(word >> 16));
  }
  DCOMM_DEVICE static uint32_t narrow(const float* value) {
    uint32_t word = gpu::narrow_f16x2(value[0], value[1]);
    if (value[0] != value[0]) word = (word & 0xffff0000u) | kF16QuietNan;
    if (value[1] != value[1]) word = (word & 0x0000ffffu) | (static_cast<uint32_t>(kF16QuietNan) << 16);
    return word;
  }
};

/// kCount elements as they are stored: 16-byte packs, one of 8 bytes, or a single element.
template <class Element, int kCount>
struct CudaBlock {
  static constexpr int kWords = kCount * static_cast<int>(sizeof(typename Element::Stored)) / 4;
  static constexpr int kPackWords = kWords == 2 ? 2 : 4;
  static_assert(kWords % kPackWords == 0 && kWords * 4 == kCount * static_cast<int>(sizeof(typename Element::Stored)));
  uint32_t words[kWords];

  /// index: counted in blocks of kCount elements.
  DCOMM_DEVICE static CudaBlock load(const std::byte* from, uint32_t index) {
    CudaBlock block;
    DCOMM_UNROLL
    for (int w = 0; w < kWords; w += kPackWords) {
      const auto pack = gpu::load_pack<kPackWords>(from + (size_t{index} * kWords + w) * 4);
      DCOMM_UNROLL
      for (int k = 0; k < kPackWords; ++k) block.words[w + k] = pack.words[k];
    }
    return block;
  }
  DCOMM_DEVICE void store(std::byte* to, uint32_t index) const {
    DCOMM_UNROLL
    for (int w = 0; w < kWords; w += kPackWords) {
      gpu::Pack<kPackWords> pack;
      DCOMM_UNROLL
      for (int k = 0; k < kPackWords; ++k) pack.words[k] = words[w + k];
      gpu::store_pack(to + (size_t{index} * kWords + w) * 4, pack);
    }
  }
  DCOMM_DEVICE void widen(float (&value)[kCount]) const {
    DCOMM_UNROLL
    for (int w = 0; w < kWords; ++w) Element::widen(words[w], value + w * Element::kPerWord);
  }
  DCOMM_DEVICE static CudaBlock narrow(const float (&value)[kCount]) {
    CudaBlock block;
    DCOMM_UNROLL
    for (int w = 0; w < kWords; ++w) block.words[w] = Element::narrow(value + w * Element::kPerWord);
    return block;
  }
};

template <class Element>
struct CudaBlock<Element, 1> {
  using Stored = typename Element::Stored;
  Stored element;

  DCOMM_DEVICE static CudaBlock load(const std::byte* from, uint32_t index) {
    return {gpu::load_element(reinterpret_cast<const Stored*>(from) + index)};
  }
  DCOMM_DEVICE void store(std::byte* to, uint32_t index) const {
    gpu::store_element(reinterpret_cast<Stored*>(to) + index, element);
  }
  DCOMM_DEVICE void widen(float (&value)[1]) const {
    float wide[2];
    Element::widen(element, wide);
    value[0] = wide[0];
  }
  DCOMM_DEVICE static CudaBlock narrow(const float (&value)[1]) {
    const float pair[2] = {value[0], 0.0f};
    return {static_cast<Stored>(Element::narrow(pair))};
  }
};

}  // namespace dcomm
