// What an all-reduce must give, element by element, from DECISIONS 1, 3 and 4 alone: no code of the library is used,
// and half precision is rounded by floating-point arithmetic instead of integer tricks. Slow and plain.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "base/dtype.h"
#include "protocol/control.h"
#include "tree_order.h"

namespace dcomm::checks {

using Bytes = std::vector<unsigned char>;

/// The two half formats: significant bits, and the exponent (of frexp) of the least normal number.
struct HalfFormat {
  int precision;
  int least_exponent;
  double greatest;
};
inline HalfFormat half_format(DType dtype) {
  if (dtype == DType::kF16) return {11, -13, 65504.0};
  return {8, -125, (2.0 - std::ldexp(1.0, -7)) * std::ldexp(1.0, 127)};
}

/// The nearest number of the format, ties to even; inf beyond its range.
inline float round_to_half(float value, DType dtype) {
  if (std::isnan(value) || std::isinf(value) || value == 0.0f) return value;
  const HalfFormat format = half_format(dtype);
  int exponent = 0;
  std::frexp(value, &exponent);
  const double quantum = std::ldexp(1.0, std::max(exponent, format.least_exponent) - format.precision);
  const double rounded = std::nearbyint(static_cast<double>(value) / quantum) * quantum;
  if (std::fabs(rounded) > format.greatest) return std::copysign(std::numeric_limits<float>::infinity(), value);
  return static_cast<float>(rounded);
}

/// The bits of a number that the format holds exactly; NaN is the canonical quiet one.
inline uint16_t half_bits(float value, DType dtype) {
  const HalfFormat format = half_format(dtype);
  const int fraction_bits = format.precision - 1;
  const int exponent_bits = 15 - fraction_bits;
  const int infinity = ((1 << exponent_bits) - 1) << fraction_bits;
  if (std::isnan(value)) return static_cast<uint16_t>(infinity | 1 << (fraction_bits - 1));
  const int sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isinf(value)) return static_cast<uint16_t>(sign | infinity);
  int exponent = 0;
  std::frexp(value, &exponent);
  const double quantum = std::ldexp(1.0, std::max(exponent, format.least_exponent) - format.precision);
  const int significand = static_cast<int>(std::fabs(value) / quantum);  // the hidden bit carries into the exponent
  const int steps = value == 0.0f ? 0 : std::max(exponent - format.least_exponent, 0);
  return static_cast<uint16_t>(sign | ((steps << fraction_bits) + significand));
}

inline float half_value(uint16_t bits, DType dtype) {
  const HalfFormat format = half_format(dtype);
  const int fraction_bits = format.precision - 1;
  const int exponent = (bits & 0x7fff) >> fraction_bits;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  double value = 0.0;
  if (exponent == (1 << (15 - fraction_bits)) - 1) {
    value = fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    value = std::ldexp(fraction, format.least_exponent - format.precision);
  } else {
    value = std::ldexp(fraction + (1 << fraction_bits), format.least_exponent - format.precision + exponent - 1);
  }
  return static_cast<float>((bits & 0x8000) != 0 ? -value : value);
}

struct ReduceCase {
  DType dtype = DType::kF32;
  DType wire = DType::kF32;
  ReduceOp op = ReduceOp::kSum;
  Algo algo = Algo::kTwoShot;
  double factor = 1.0;  // of premul_sum
};

/// One bool; a type of its own, because a bool would be added as a number.
enum class Truth : unsigned char { kFalse = 0, kTrue = 1 };

/// NaN wins, -0 < +0.
template <class Float>
Float extreme(bool greater, Float a, Float b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<Float>::quiet_NaN();
  if (a == b) return std::signbit(a) == greater ? b : a;
  return (a > b) == greater ? a : b;
}

/// What `op` makes of two elements. Acc: float, double, Truth, or an integer (which wraps).
template <class Acc>
Acc combined(ReduceOp op, Acc a, Acc b) {
  if constexpr (std::is_same_v<Acc, Truth>) {
    const bool x = a == Truth::kTrue, y = b == Truth::kTrue;
    const bool both = op == ReduceOp::kProd || op == ReduceOp::kMin || op == ReduceOp::kBand;
    return static_cast<Truth>(op == ReduceOp::kBxor ? x != y : both ? x && y : x || y);
  } else if constexpr (std::is_floating_point_v<Acc>) {
    if (op == ReduceOp::kProd) return a * b;
    if (op == ReduceOp::kMin || op == ReduceOp::kMax) return extreme(op == ReduceOp::kMax, a, b);
    return a + b;
  } else {
    using Unsigned = std::make_unsigned_t<Acc>;
    const Unsigned x = static_cast<Unsigned>(a), y = static_cast<Unsigned>(b);
    switch (op) {
      case ReduceOp::kProd:
        return static_cast<Acc>(x * y);
      case ReduceOp::kMin:
        return std::min(a, b);
      case ReduceOp::kMax:
        return std::max(a, b);
      case ReduceOp::kBand:
        return static_cast<Acc>(x & y);
      case ReduceOp::kBor:
        return static_cast<Acc>(x | y);
      case ReduceOp::kBxor:
        return static_cast<Acc>(x ^ y);
      default:
        return static_cast<Acc>(x + y);
    }
  }
}

/// The canonical tree: [lo, hi) split at lo + the largest power of two below its length.
template <class Acc>
Acc canonical_tree(ReduceOp op, const std::vector<Acc>& terms, size_t lo, size_t hi) {
  if (hi - lo == 1) return terms[lo];
  size_t power = 1;
  while (power * 2 < hi - lo) power *= 2;
  return combined(op, canonical_tree(op, terms, lo, lo + power), canonical_tree(op, terms, lo + power, hi));
}

/// Acc: what an element is combined as.
template <class Acc>
class Reference {
 public:
  Reference(const ReduceCase& what, int world_size)
      : what_(what),
        n_(world_size),
        divide_first_(what.op == ReduceOp::kAvg && is_half(what.wire) &&
                      (what.wire != what.dtype || what.algo == Algo::kRing || what.algo == Algo::kTree)) {}

  Bytes all_reduce(const std::vector<Bytes>& inputs, size_t count) const {
    Bytes result(count * dtype_bytes(what_.dtype));
    const auto n = static_cast<size_t>(n_);
    std::vector<Acc> terms(n);
    for (size_t i = 0; i < count; ++i) {
      for (size_t rank = 0; rank < n; ++rank) terms[rank] = prepared(load(inputs[rank], i));
      store(result, i, reduced(terms, i, count));
    }
    return result;
  }

 private:
  Acc two_shot(std::vector<Acc> terms) const {
    for (Acc& term : terms) term = on_wire(term);
    return on_wire(averaged(canonical_tree(what_.op, terms, 0, terms.size())));
  }

  Acc reduced(const std::vector<Acc>& terms, size_t element, size_t count) const {
    const auto chunk_of = [&](size_t num_chunks) {
      return element / (((count + num_chunks - 1) / num_chunks + 15) / 16 * 16);
    };
    if (what_.algo == Algo::kRing) return ring(terms, chunk_of(terms.size()));
    if (what_.algo != Algo::kTree) return two_shot(terms);
    return on_wire(averaged(climbed(terms, static_cast<int>(chunk_of(2)), 1, n_)));
  }

  /// At the root of nodes lo .. hi of a tree, before it is rounded: what climbs further is rounded at every hop.
  Acc climbed(const std::vector<Acc>& terms, int tree, int lo, int hi) const {
    const int root = tree_root_of(lo, hi);
    Acc sum = terms[static_cast<size_t>(tree_rank_at(root, n_, tree))];
    if (root > lo) sum = combined(what_.op, sum, on_wire(climbed(terms, tree, lo, root - 1)));
    if (root < hi) sum = combined(what_.op, sum, on_wire(climbed(terms, tree, root + 1, hi)));
    return sum;
  }

  /// Chunk c in the order c+1, ..., c; what travels is rounded at every hop.
  Acc ring(const std::vector<Acc>& terms, size_t chunk) const {
    const size_t n = terms.size();
    Acc value = on_wire(terms[(chunk + 1) % n]);
    for (size_t i = 2; i < n; ++i) value = on_wire(combined(what_.op, value, terms[(chunk + i) % n]));
    return on_wire(averaged(combined(what_.op, value, terms[chunk])));
  }

  Acc prepared(Acc term) const {
    if constexpr (std::is_floating_point_v<Acc>) {
      if (divide_first_) return term / static_cast<Acc>(n_);
      if (what_.op == ReduceOp::kPremulSum) return term * static_cast<Acc>(what_.factor);
    }
    return term;
  }

  Acc averaged(Acc sum) const {
    if constexpr (std::is_floating_point_v<Acc>) {
      if (what_.op == ReduceOp::kAvg && !divide_first_) return sum / static_cast<Acc>(n_);
    }
    return sum;
  }

  Acc on_wire(Acc value) const {
    if constexpr (std::is_same_v<Acc, float>) {
      if (is_half(what_.wire)) return round_to_half(value, what_.wire);
    }
    return value;
  }

  Acc load(const Bytes& from, size_t i) const {
    if constexpr (std::is_same_v<Acc, float>) {
      if (is_half(what_.dtype)) {
        uint16_t bits = 0;
        std::memcpy(&bits, &from[i * 2], 2);
        return half_value(bits, what_.dtype);
      }
    }
    Acc value;
    std::memcpy(&value, &from[i * sizeof(Acc)], sizeof(Acc));
    return value;
  }

  void store(Bytes& to, size_t i, Acc value) const {
    if constexpr (std::is_same_v<Acc, float>) {
      if (is_half(what_.dtype)) {
        const uint16_t bits = half_bits(value, what_.dtype);
        std::memcpy(&to[i * 2], &bits, 2);
        return;
      }
    }
    if constexpr (std::is_floating_point_v<Acc>) {
      if (std::isnan(value)) value = std::numeric_limits<Acc>::quiet_NaN();
    }
    std::memcpy(&to[i * sizeof(Acc)], &value, sizeof(Acc));
  }

  const ReduceCase what_;
  const int n_;
  const bool divide_first_;
};

/// A complex number is its two components, of which an array holds twice as many: (count) complex64 -> (2 count) f32.
inline ReduceCase in_components(ReduceCase what) {
  what.dtype = component_of(what.dtype);
  what.wire = component_of(what.wire);
  return what;
}

inline Bytes reference_all_reduce(const ReduceCase& what, const std::vector<Bytes>& inputs, size_t count) {
  const int n = static_cast<int>(inputs.size());
  switch (what.dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return Reference<float>(what, n).all_reduce(inputs, count);
    case DType::kF64:
      return Reference<double>(what, n).all_reduce(inputs, count);
    case DType::kI8:
      return Reference<int8_t>(what, n).all_reduce(inputs, count);
    case DType::kU8:
      return Reference<uint8_t>(what, n).all_reduce(inputs, count);
    case DType::kBool:
      return Reference<Truth>(what, n).all_reduce(inputs, count);
    case DType::kI32:
      return Reference<int32_t>(what, n).all_reduce(inputs, count);
    case DType::kI64:
      return Reference<int64_t>(what, n).all_reduce(inputs, count);
    case DType::kC64:
    case DType::kC128:
      return reference_all_reduce(in_components(what), inputs, 2 * count);
    case DType::kF8Block32:
    case DType::kF8Block128:
      break;  // no array's
  }
  return {};
}

}  // namespace dcomm::checks
