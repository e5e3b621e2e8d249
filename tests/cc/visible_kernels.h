// The kernels for the threads of a check. Under ThreadSanitizer each call first declares what it reads and writes:
// gcc instruments neither fixed-size memcpy nor masked vector stores, so that races on slots would go unseen.
#pragma once

#include "base/dtype.h"
#include "exec/host_kernels.h"

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read_range(void* begin, unsigned long num_bytes);
extern "C" void __tsan_write_range(void* begin, unsigned long num_bytes);
#endif

namespace dcomm::checks {

#if defined(__SANITIZE_THREAD__)

template <DType kDType, DType kWire>
struct VisibleTile {
  static const TileFunctions& real() {
    static const TileFunctions* const functions = select_kernel_table(nullptr)->find(kDType, kWire);
    return *functions;
  }
  static void reads(const void* begin, size_t count, DType dtype) {
    if (count != 0) __tsan_read_range(const_cast<void*>(begin), count * dtype_bytes(dtype));
  }
  static void writes(void* begin, size_t count, DType dtype) {
    if (count != 0) __tsan_write_range(begin, count * dtype_bytes(dtype));
  }

  static void encode(void* wire, const void* user, size_t count, double divisor) {
    reads(user, count, kDType);
    writes(wire, count, kWire);
    real().encode(wire, user, count, divisor);
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
};

inline const KernelTable& thread_kernels() {
  static constexpr KernelTable kTable{"visible", [](DType dtype, DType wire) -> const TileFunctions* {
                                        if (dtype == DType::kF32 && wire == DType::kF16)
                                          return &VisibleTile<DType::kF32, DType::kF16>::kFunctions;
                                        if (dtype == DType::kF32 && wire == DType::kBF16)
                                          return &VisibleTile<DType::kF32, DType::kBF16>::kFunctions;
                                        if (dtype != wire) return nullptr;
                                        switch (dtype) {
                                          case DType::kF32:
                                            return &VisibleTile<DType::kF32, DType::kF32>::kFunctions;
                                          case DType::kF16:
                                            return &VisibleTile<DType::kF16, DType::kF16>::kFunctions;
                                          case DType::kBF16:
                                            return &VisibleTile<DType::kBF16, DType::kBF16>::kFunctions;
                                          case DType::kF64:
                                            return &VisibleTile<DType::kF64, DType::kF64>::kFunctions;
                                          case DType::kI32:
                                            return &VisibleTile<DType::kI32, DType::kI32>::kFunctions;
                                          case DType::kI64:
                                            return &VisibleTile<DType::kI64, DType::kI64>::kFunctions;
                                        }
                                        return nullptr;
                                      }};
  return kTable;
}

#else

inline const KernelTable& thread_kernels() { return *select_kernel_table(nullptr); }

#endif

}  // namespace dcomm::checks
