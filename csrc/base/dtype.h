// Element types and reduction operations, with the numbers that cross the Python and CUDA boundaries.
// Floor: base. The numeric values are part of the fingerprint: append, never renumber.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/macros.h"

namespace dcomm {

enum class DType : uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2, kF64 = 3, kI32 = 4, kI64 = 5 };
inline constexpr int kNumDTypes = 6;

enum class ReduceOp : uint8_t { kSum = 0, kAvg = 1 };
inline constexpr int kNumReduceOps = 2;

/// Size of one element in bytes.
DCOMM_HOST_DEVICE constexpr size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
  }
  return 0;
}

DCOMM_HOST_DEVICE constexpr bool is_integer(DType dtype) { return dtype == DType::kI32 || dtype == DType::kI64; }

DCOMM_HOST_DEVICE constexpr bool is_half(DType dtype) { return dtype == DType::kF16 || dtype == DType::kBF16; }

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
  }
  return "unknown";
}

constexpr const char* reduce_op_name(ReduceOp op) { return op == ReduceOp::kSum ? "sum" : "avg"; }

}  // namespace dcomm
