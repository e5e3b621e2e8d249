// e4m3 numbers whose block shares a power of two as scale, in integer arithmetic: the reference for the vectorised
// tables, and what kernels use on every GPU. Floor: base.
//
//   element   s eeee mmm   +-2^(e-7) (1 + m/8); e = 0: +-m 2^-9; the largest is 448; no inf; s1111111 is a NaN
//   scale     8 bits       2^(code-127); 255: NaN
//   value     element x scale, exact in float32 but for denormals and for what rounds to 2^128
//
// A block's scale is the least power of two by which its largest magnitude is at most 448: nothing saturates, and the
// largest keeps 3 bits after the point at the least. Where one element is inf or NaN the scale is NaN and with it all
// of the block: e4m3 has no inf, and a gradient scaler must see one. A zero keeps its sign. No branch on the values:
// the device takes this as it stands.
// Source: OCP 8-bit Floating Point (OFP8) 1.0 for the elements, OCP Microscaling Formats (MX) 1.0 for the scales; MX
// proposes a scale by which up to a block's largest quarter octave saturates, which is why it is rounded up here.
#pragma once

#include <cstdint>

#include "base/half.h"
#include "base/macros.h"
#include "base/mutation.h"

namespace dcomm {

inline constexpr uint32_t kF32Infinity = 0x7f800000u;
inline constexpr uint8_t kE4M3Largest = 0x7e;
inline constexpr uint8_t kScaleNan = 0xff;
/// Scales are not smaller than the least normal float32, so that neither they nor their inverses are denormal: what is
/// below 2^-136 becomes zero.
inline constexpr uint8_t kLeastScale = 1;

DCOMM_ALWAYS_INLINE uint32_t fp8_magnitude(uint32_t bits) { return bits & 0x7fffffffu; }

/// largest: the block's largest fp8_magnitude; inf and NaN are above all numbers.
DCOMM_ALWAYS_INLINE uint8_t fp8_scale_code(uint32_t largest) {
  if (largest >= kF32Infinity && !mutated(Mutation::kFp8NoNanScale)) return kScaleNan;
  // The exponent, one more where the significand is above 1.75 (448 = 1.75 x 2^8).
  const uint32_t exponent = (largest + 0x1fffffu) >> 23;
  const uint32_t code = exponent < 8 + kLeastScale ? kLeastScale : exponent - 8;
  return static_cast<uint8_t>(code + (mutated(Mutation::kFp8ScaleOff) ? 1 : 0));
}

DCOMM_ALWAYS_INLINE float fp8_scale(uint8_t code) {
  return code == kScaleNan ? f32_from_bits(kF32QuietNan) : f32_from_bits(static_cast<uint32_t>(code) << 23);
}

/// 1 / fp8_scale, exactly; of the NaN 0, though inf x 0 is none.
DCOMM_ALWAYS_INLINE float fp8_inverse_scale(uint8_t code) {
  return code == kScaleNan ? 0.0f : f32_from_bits((254u - code) << 23);
}

/// The nearest, ties to even; 448 for all above, NaN for NaN.
DCOMM_ALWAYS_INLINE uint8_t e4m3_from_f32(float value) {
  const uint32_t bits = f32_bits(value);
  const uint32_t magnitude = fp8_magnitude(bits);
  // Normal: the exponent rebased by 120, 20 bits rounded off.
  const uint32_t normal = (magnitude - 0x3c000000u + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  // Denormal: the significand in units of 2^-9. Of what is below half a unit no bit is left at a shift of 25.
  const uint32_t exponent = magnitude >> 23;
  const uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t shift = exponent > 116u ? (141u - exponent) & 31u : 25u;
  const uint32_t denormal = (significand + (1u << (shift - 1u)) - 1u + ((significand >> shift) & 1u)) >> shift;
  uint32_t code = magnitude < 0x3c800000u ? denormal : normal;
  if (magnitude >= 0x43e00000u) code = kE4M3Largest;
  if (magnitude > kF32Infinity) code = 0x7fu;
  return static_cast<uint8_t>((bits >> 24 & 0x80u) | code);
}

/// Exact.
DCOMM_ALWAYS_INLINE float e4m3_to_f32(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu;
  // A denormal as what it adds to the least normal number.
  const float denormal = f32_from_bits((magnitude << 20) + 0x3c800000u) - 0x1p-6f;
  const float normal = f32_from_bits((magnitude << 20) + 0x3c000000u);
  const float value = magnitude == 0x7fu ? f32_from_bits(kF32QuietNan) : magnitude < 8u ? denormal : normal;
  return f32_from_bits(f32_bits(value) | (code & 0x80u) << 24);
}

/// What an element is worth: `scale` is fp8_scale's. The product of two NaNs is a GPU's own, hence canonical.
DCOMM_ALWAYS_INLINE float fp8_value(uint8_t code, float scale) { return f32_canonical(e4m3_to_f32(code) * scale); }

}  // namespace dcomm
