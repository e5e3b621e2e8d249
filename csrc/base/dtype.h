// Element types and reduction operations, with the numbers that cross the Python and CUDA boundaries.
// Floor: base. The numeric values are part of the fingerprint: append, never renumber.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/macros.h"

namespace dcomm {

enum class DType : uint8_t {
  kF32 = 0,
  kF16 = 1,
  kBF16 = 2,
  kF64 = 3,
  kI32 = 4,
  kI64 = 5,
  kI8 = 6,
  kU8 = 7,
  kBool = 8,
  kC64 = 9,
  kC128 = 10,
  // What float32 may travel as; no array has it.
  kF8Block32 = 11,
  kF8Block128 = 12,
};
inline constexpr int kNumDTypes = 11;      // of arrays
inline constexpr int kNumWireDTypes = 13;  // and of wires

enum class ReduceOp : uint8_t {
  kSum = 0,
  kAvg = 1,
  kProd = 2,
  kMin = 3,
  kMax = 4,
  kBand = 5,
  kBor = 6,
  kBxor = 7,
  kPremulSum = 8,
};
inline constexpr int kNumReduceOps = 9;

/// Size of one element in bytes; of those that share a scale, without it (schedule/block_layout.h).
DCOMM_HOST_DEVICE constexpr size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF8Block32:
    case DType::kF8Block128:
    case DType::kI8:
    case DType::kU8:
    case DType::kBool:
      return 1;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF64:
    case DType::kI64:
    case DType::kC64:
      return 8;
    case DType::kC128:
      return 16;
  }
  return 0;
}

/// bool is none: its sum does not count.
DCOMM_HOST_DEVICE constexpr bool is_integer(DType dtype) {
  return dtype == DType::kI8 || dtype == DType::kU8 || dtype == DType::kI32 || dtype == DType::kI64;
}

DCOMM_HOST_DEVICE constexpr bool is_half(DType dtype) { return dtype == DType::kF16 || dtype == DType::kBF16; }

/// e4m3 numbers of which a block shares a scale: base/fp8.h.
DCOMM_HOST_DEVICE constexpr bool is_block_scaled(DType wire) {
  return wire == DType::kF8Block32 || wire == DType::kF8Block128;
}

/// Narrower than float32, in which it is summed.
DCOMM_HOST_DEVICE constexpr bool is_narrow(DType wire) { return is_half(wire) || is_block_scaled(wire); }

DCOMM_HOST_DEVICE constexpr bool is_floating(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF64 || is_half(dtype);
}

DCOMM_HOST_DEVICE constexpr bool is_complex(DType dtype) { return dtype == DType::kC64 || dtype == DType::kC128; }

/// What a complex element is a pair of; any other type is its own component.
DCOMM_HOST_DEVICE constexpr DType component_of(DType dtype) {
  return dtype == DType::kC64 ? DType::kF32 : dtype == DType::kC128 ? DType::kF64 : dtype;
}

/// Whether `op` can reduce elements of `dtype`.
DCOMM_HOST_DEVICE constexpr bool is_defined(ReduceOp op, DType dtype) {
  switch (op) {
    case ReduceOp::kSum:
      return true;
    case ReduceOp::kAvg:
      return is_floating(dtype) || is_complex(dtype);
    case ReduceOp::kProd:
    case ReduceOp::kMin:
    case ReduceOp::kMax:
      return !is_complex(dtype);
    case ReduceOp::kBand:
    case ReduceOp::kBor:
    case ReduceOp::kBxor:
      return is_integer(dtype) || dtype == DType::kBool;
    case ReduceOp::kPremulSum:
      return is_floating(dtype);
  }
  return false;
}

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kF64:
      return "float64";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kI8:
      return "int8";
    case DType::kU8:
      return "uint8";
    case DType::kBool:
      return "bool";
    case DType::kC64:
      return "complex64";
    case DType::kC128:
      return "complex128";
    case DType::kF8Block32:
      return "fp8_block32";
    case DType::kF8Block128:
      return "fp8_block128";
  }
  return "unknown";
}

constexpr const char* reduce_op_name(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return "sum";
    case ReduceOp::kAvg:
      return "avg";
    case ReduceOp::kProd:
      return "prod";
    case ReduceOp::kMin:
      return "min";
    case ReduceOp::kMax:
      return "max";
    case ReduceOp::kBand:
      return "band";
    case ReduceOp::kBor:
      return "bor";
    case ReduceOp::kBxor:
      return "bxor";
    case ReduceOp::kPremulSum:
      return "premul_sum";
  }
  return "unknown";
}

}  // namespace dcomm
