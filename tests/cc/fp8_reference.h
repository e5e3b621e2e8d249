// What an all-reduce on an fp8 wire must give, block by block, in floating-point arithmetic: no code of the library is
// used. Slow and plain, as reference.h.
#pragma once

#include "reference.h"

namespace dcomm::checks {

inline size_t fp8_block(DType wire) { return wire == DType::kF8Block32 ? 32 : 128; }

/// A number of e4m3 without sign, by its code; the last of them is a NaN.
inline double e4m3_value(int code) {
  if (code == 127) return std::numeric_limits<double>::quiet_NaN();
  return code < 8 ? std::ldexp(code, -9) : std::ldexp(8 + code % 8, code / 8 - 10);
}

/// To the nearest of the 127 numbers, ties to the even code; those above the last one, 448, become it.
inline int nearest_e4m3(double magnitude) {
  int best = 0;
  for (int code = 1; code < 127; ++code) {
    const double was = std::fabs(magnitude - e4m3_value(best)), is = std::fabs(magnitude - e4m3_value(code));
    if (is < was || (is == was && code % 2 == 0)) best = code;
  }
  return best;
}

/// The exponent of the least power of two by which `largest` is at most 448, or of the least normal float32.
inline int fp8_exponent(float largest) {
  int exponent = -126;
  while (std::ldexp(static_cast<double>(largest), -exponent) > 448.0) ++exponent;
  return exponent;
}

/// What becomes of [begin, end), which is a block.
inline void round_fp8_block(std::vector<float>& values, size_t begin, size_t end) {
  float largest = 0.0f;
  bool is_finite = true;
  for (size_t i = begin; i < end; ++i) {
    is_finite = is_finite && std::isfinite(values[i]);
    largest = std::max(largest, std::fabs(values[i]));
  }
  const int exponent = is_finite ? fp8_exponent(largest) : 0;
  for (size_t i = begin; i < end; ++i) {
    const double magnitude = std::ldexp(std::fabs(static_cast<double>(values[i])), -exponent);
    const double rounded = is_finite ? std::ldexp(e4m3_value(nearest_e4m3(magnitude)), exponent)
                                     : std::numeric_limits<double>::quiet_NaN();
    values[i] = is_finite ? std::copysign(static_cast<float>(rounded), values[i]) : static_cast<float>(rounded);
  }
}

inline void round_fp8(std::vector<float>& values, DType wire) {
  const size_t block = fp8_block(wire);
  for (size_t i = 0; i < values.size(); i += block) {
    round_fp8_block(values, i, std::min(i + block, values.size()));
  }
}

inline Bytes fp8_all_reduce(const ReduceCase& what, const std::vector<Bytes>& inputs, size_t count) {
  const float n = static_cast<float>(inputs.size());
  std::vector<std::vector<float>> terms;
  for (const Bytes& input : inputs) {
    std::vector<float>& term = terms.emplace_back(count);
    if (count != 0) std::memcpy(term.data(), input.data(), count * sizeof(float));
    for (float& value : term) {
      if (what.op == ReduceOp::kAvg) value = value / n;
      if (what.op == ReduceOp::kPremulSum) value = value * static_cast<float>(what.factor);
    }
    round_fp8(term, what.wire);
  }
  std::vector<float> sums(count), column(terms.size());
  for (size_t i = 0; i < count; ++i) {
    for (size_t rank = 0; rank < terms.size(); ++rank) column[rank] = terms[rank][i];
    sums[i] = canonical_tree(ReduceOp::kSum, column, 0, column.size());
  }
  round_fp8(sums, what.wire);
  Bytes result(count * sizeof(float));
  for (size_t i = 0; i < count; ++i) {
    const float value = std::isnan(sums[i]) ? std::numeric_limits<float>::quiet_NaN() : sums[i];
    std::memcpy(&result[i * sizeof(float)], &value, sizeof(float));
  }
  return result;
}

}  // namespace dcomm::checks
