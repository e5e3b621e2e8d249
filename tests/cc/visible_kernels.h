// The kernels for the threads of a check. Under ThreadSanitizer each call first declares what it reads and writes:
// gcc instruments neither fixed-size memcpy nor masked vector stores, so that races on slots would go unseen.
#pragma once

#include <cstddef>
#include <utility>

#include "base/dtype.h"
#include "exec/host_kernels.h"
#include "schedule/block_layout.h"

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read_range(void* begin, unsigned long num_bytes);
extern "C" void __tsan_write_range(void* begin, unsigned long num_bytes);
#endif

namespace dcomm::checks {

#if defined(__SANITIZE_THREAD__)

template <DType kDType, DType kWire, ReduceOp kOp>
struct VisibleTile {
  static const TileFunctions& real() {
    static const TileFunctions* const functions = select_kernel_table(nullptr)->find(kDType, kWire, kOp);
    return *functions;
  }
  /// Of what starts at the beginning of a slot, or of a group of blocks.
  static size_t extent(size_t count, DType dtype) {
    if (!is_block_scaled(dtype)) return count * dtype_bytes(dtype);
    const BlockLayout layout{block_count_of(dtype)};
    return layout.element_offset(layout.num_blocks(count) * layout.block_count - 1) + 1;
  }
  static void reads(const void* begin, size_t count, DType dtype) {
    if (count != 0) __tsan_read_range(const_cast<void*>(begin), extent(count, dtype));
  }
  static void writes(void* begin, size_t count, DType dtype) {
    if (count != 0) __tsan_write_range(begin, extent(count, dtype));
  }

  static void encode(void* wire, const void* user, size_t count, Scale scale) {
    reads(user, count, kDType);
    writes(wire, count, kWire);
    real().encode(wire, user, count, scale);
  }
  static void decode(void* user, const void* wire, size_t count) {
    reads(wire, count, kWire);
    writes(user, count, kDType);
    real().decode(user, wire, count);
  }
  static void reduce(const ReduceTile& tile) {
    for (int i = 0; i < tile.num_inputs; ++i) {
      if (i != tile.own_index) reads(tile.inputs[i], tile.count, kWire);
    }
    reads(tile.own, tile.count, kDType);
    for (int i = 0; i < tile.num_wire_outputs; ++i) writes(tile.wire_outputs[i], tile.count, kWire);
    if (tile.out != nullptr) writes(tile.out, tile.count, kDType);
    real().reduce(tile);
  }

  static constexpr TileFunctions kFunctions{&encode, &decode, &reduce};

  static const TileFunctions* functions() {
    constexpr bool kIsSum = kOp == ReduceOp::kSum || kOp == ReduceOp::kAvg || kOp == ReduceOp::kPremulSum;
    if constexpr (is_defined(kOp, kDType) && !is_complex(kDType) &&
                  (kDType == kWire ||
                   (kDType == DType::kF32 && (is_half(kWire) || (is_block_scaled(kWire) && kIsSum))))) {
      return &kFunctions;
    }
    return nullptr;
  }
};

inline constexpr size_t kNumVisible = size_t{kNumDTypes} * kNumWireDTypes * kNumReduceOps;

template <size_t... kIndices>
const TileFunctions* find_visible(size_t index, std::index_sequence<kIndices...>) {
  using Find = const TileFunctions* (*)();
  static constexpr Find kFind[] = {&VisibleTile<static_cast<DType>(kIndices / kNumReduceOps / kNumWireDTypes),
                                                static_cast<DType>(kIndices / kNumReduceOps % kNumWireDTypes),
                                                static_cast<ReduceOp>(kIndices % kNumReduceOps)>::functions...};
  return kFind[index]();
}

inline const TileFunctions* find_visible(DType dtype, DType wire, ReduceOp op) {
  const size_t pair = static_cast<size_t>(dtype) * kNumWireDTypes + static_cast<size_t>(wire);
  return find_visible(pair * kNumReduceOps + static_cast<size_t>(op), std::make_index_sequence<kNumVisible>());
}

inline const KernelTable& thread_kernels() {
  static constexpr KernelTable kTable{"visible", &find_visible};
  return kTable;
}

#else

inline const KernelTable& thread_kernels() { return *select_kernel_table(nullptr); }

#endif

}  // namespace dcomm::checks
