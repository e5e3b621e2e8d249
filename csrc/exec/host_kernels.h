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

/// x / number, or x * number, in float32 (f64: float64), rounded once; 1 leaves x as it is. Integers and bool
/// ignore it.
struct Scale {
  double number = 1.0;
  bool multiply = false;
};

/// One reduction: inputs in canonical order, combined as a balanced pairwise tree over the index
/// ([lo, hi) is split at lo + the largest power of two below its length), in float32 for f32, f16 and
/// bf16, in float64 for f64, with wrap-around for integers. min and max: NaN wins, -0 < +0.
struct ReduceTile {
  const void* const* inputs = nullptr;  // num_inputs wire pointers; inputs[own_index] is not read
  int num_inputs = 0;
  int own_index = -1;                   // position of this rank's own (user) input in the order
  const void* own = nullptr;            // user elements
  void* out = nullptr;                  // user elements, or nullptr
  void* const* wire_outputs = nullptr;  // each may be one of `inputs` (reduced in place)
  int num_wire_outputs = 0;
  size_t count = 0;
  Scale pre;               // of the own input, before anything else
  Scale post;              // of the result, once, at the end
  bool round_own = false;  // own goes through the wire type before it is combined
  bool is_final = false;   // the result's NaNs are made canonical (half wires always do so)
};

struct TileFunctions {
  /// wire[i] = wire_round(scaled user[i])
  void (*encode)(void* wire, const void* user, size_t count, Scale scale);
  /// user[i] = wire[i]
  void (*decode)(void* user, const void* wire, size_t count);
  /// result -> out (after rounding through the wire type) and every wire output
  void (*reduce)(const ReduceTile& tile);
};

struct KernelTable {
  const char* isa;
  /// nullptr where `op` is not defined for `dtype`, where (dtype, wire) is not one of: equal types, (f32, f16),
  /// (f32, bf16), (f32, fp8), that for sums alone and its wire pointers those of groups (schedule/block_layout.h); and
  /// for complex types, which are reduced as twice as many of their components. avg and premul_sum are the functions of
  /// sum: what they add stands in the Scales.
  const TileFunctions* (*find)(DType dtype, DType wire, ReduceOp op);
};

const KernelTable* kernel_table_scalar();
const KernelTable* kernel_table_avx2();    // nullptr where not compiled in
const KernelTable* kernel_table_avx512();  // nullptr where not compiled in
const KernelTable* kernel_table_neon();    // nullptr where not compiled in

/// The best table this CPU runs, or the one named by `isa` ("scalar", "avx2", "avx512", "neon"; nullptr or
/// "": the best). Throws kInvalidArgument for a name that is unknown or not supported by this CPU.
const KernelTable* select_kernel_table(const char* isa);
/// The one that DCOMM_ISA names; throws as select_kernel_table.
const KernelTable* kernel_table_from_environment();

}  // namespace dcomm
