// The host's tile functions: one table per instruction set, chosen at run time. Floor: exec.
//
// A tile function moves or reduces `count` contiguous elements that fit in a slot. "user" pointers hold
// elements of the array's dtype, "wire" pointers elements of the wire dtype. All tables give the same
// bits (no FMA, one rounding rule); `tests/` compares them with each other.
//
// Each kernels_<isa>.cc is compiled with its own target flags and keeps every function in an anonymous
// namespace: an inline template shared with other objects could be the copy that the linker keeps for
// everybody, and would crash on a lesser CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace dcomm {

/// One reduction: inputs in canonical order, summed as a balanced pairwise tree over the index
/// ([lo, hi) is split at lo + the largest power of two below its length), in float32 for f32, f16 and
/// bf16, in float64 for f64, with wrap-around for integers.
struct ReduceTile {
  const void* const* inputs = nullptr;  // num_inputs wire pointers; inputs[own_index] is not read
  int num_inputs = 0;
  int own_index = -1;                   // position of this rank's own (user) input in the order
  const void* own = nullptr;            // user elements
  void* out = nullptr;                  // user elements, or nullptr
  void* const* wire_outputs = nullptr;  // each may be one of `inputs` (reduced in place)
  int num_wire_outputs = 0;
  size_t count = 0;
  double pre_divisor = 1.0;   // own is divided by it before anything else (float32 / float64 division)
  double post_divisor = 1.0;  // the sum is divided by it once, at the end
  bool round_own = false;     // own goes through the wire type before it is summed
  bool is_final = false;      // the result's NaNs are made canonical (half wires always do so)
};

struct TileFunctions {
  /// wire[i] = wire_round(user[i] / divisor)
  void (*encode)(void* wire, const void* user, size_t count, double divisor);
  /// user[i] = wire[i]
  void (*decode)(void* user, const void* wire, size_t count);
  /// sum -> out (after rounding through the wire type) and every wire output
  void (*reduce)(const ReduceTile& tile);
};

struct KernelTable {
  const char* isa;
  /// nullptr where (dtype, wire) is not one of: equal types, (f32, f16), (f32, bf16).
  const TileFunctions* (*find)(DType dtype, DType wire);
};

const KernelTable* kernel_table_scalar();
const KernelTable* kernel_table_avx2();    // nullptr where not compiled in
const KernelTable* kernel_table_avx512();  // nullptr where not compiled in

/// The best table this CPU runs, or the one named by `isa` ("scalar", "avx2", "avx512"; nullptr or "":
/// the best). Throws kInvalidArgument for a name that is unknown or not supported by this CPU.
const KernelTable* select_kernel_table(const char* isa);

}  // namespace dcomm
