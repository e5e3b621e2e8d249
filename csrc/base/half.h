// float16 and bfloat16 in integer arithmetic: the reference for every vectorised or device conversion.
// Floor: base.
//
// Rounding is to nearest, ties to even. A NaN becomes the canonical quiet NaN (the payload would
// otherwise differ between instruction sets and break "same bits on every rank"). Overflow gives inf,
// which is what a gradient scaler needs to see. Denormals are kept.
#pragma once

#include <bit>
#include <cstdint>

#include "base/macros.h"

namespace dcomm {

inline constexpr uint32_t kF32QuietNan = 0x7fc00000u;
inline constexpr uint16_t kF16QuietNan = 0x7e00u;
inline constexpr uint16_t kBF16QuietNan = 0x7fc0u;

DCOMM_ALWAYS_INLINE uint32_t f32_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return std::bit_cast<uint32_t>(value);
#endif
}

DCOMM_ALWAYS_INLINE float f32_from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

DCOMM_ALWAYS_INLINE float f32_canonical(float value) { return value != value ? f32_from_bits(kF32QuietNan) : value; }

DCOMM_HOST_DEVICE uint16_t bf16_from_f32(float value) {
  const uint32_t bits = f32_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return kBF16QuietNan;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

DCOMM_HOST_DEVICE float bf16_to_f32(uint16_t half) { return f32_from_bits(static_cast<uint32_t>(half) << 16); }

DCOMM_HOST_DEVICE uint16_t f16_from_f32(float value) {
  const uint32_t bits = f32_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return kF16QuietNan;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or above
  if (magnitude >= 0x38800000u) {  // normal: rebias the exponent by 112, round 13 bits off
    const uint32_t rebased = magnitude - 0x38000000u;
    return static_cast<uint16_t>(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
  }
  if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);  // below half of the least denormal
  // Denormal: the significand shifted so that one unit is 2^-24.
  const uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t shift = 126u - (magnitude >> 23);  // 14 .. 24
  const uint32_t floor_value = significand >> shift;
  const uint32_t rest = significand & ((1u << shift) - 1u);
  const uint32_t midpoint = 1u << (shift - 1u);
  const uint32_t up = (rest > midpoint || (rest == midpoint && (floor_value & 1u))) ? 1u : 0u;
  return static_cast<uint16_t>(sign | (floor_value + up));
}

DCOMM_HOST_DEVICE float f16_to_f32(uint16_t half) {
  const uint32_t sign = (static_cast<uint32_t>(half) & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 0x1fu) return f32_from_bits(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) return f32_from_bits(sign | ((exponent + 112u) << 23) | (fraction << 13));
  // Zero or denormal: fraction * 2^-24 is exact in float32.
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return f32_from_bits(sign | f32_bits(magnitude));
}

}  // namespace dcomm
