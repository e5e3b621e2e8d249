// The threads of a block, and how they share out packs and elements. Floor: exec.
#pragma once

#include "exec/cuda_intrinsics.cuh"

namespace dcomm {

class CudaLanes {
 public:
  DCOMM_DEVICE int lane() const { return gpu::thread_index(); }
  DCOMM_DEVICE static constexpr int num_lanes() { return gpu::kBlockThreads; }

  /// load(i) for kUnroll packs of this lane, then use(i, what was loaded) for each: so many loads are in flight.
  template <int kUnroll, class Load, class Use>
  DCOMM_DEVICE void for_each_pack(uint32_t num_packs, const Load& load, const Use& use) const {
    constexpr uint32_t kStride = static_cast<uint32_t>(num_lanes());
    for (uint32_t i = static_cast<uint32_t>(lane()); i < num_packs; i += kUnroll * kStride) {
      decltype(load(i)) loaded[kUnroll];
      DCOMM_UNROLL
      for (int k = 0; k < kUnroll; ++k) {
        const uint32_t at = i + static_cast<uint32_t>(k) * kStride;
        if (k == 0 || at < num_packs) loaded[k] = load(at);
      }
      DCOMM_UNROLL
      for (int k = 0; k < kUnroll; ++k) {
        const uint32_t at = i + static_cast<uint32_t>(k) * kStride;
        if (k == 0 || at < num_packs) use(at, loaded[k]);
      }
    }
  }
};

template <int kCount>
struct CudaWidth {
  static constexpr int value = kCount;
};

/// load(CudaWidth, i), then use(CudaWidth, i, what was loaded): packs of kElements, if the addresses are multiples of
/// 16 bytes (aligned), then single elements: nothing beyond the arrays is touched.
template <int kInFlight, int kElements, class Exec, class Load, class Use>
DCOMM_DEVICE void for_each_block(Exec& exec, bool aligned, size_t count, const Load& load, const Use& use) {
  const uint32_t num_packs = aligned ? static_cast<uint32_t>(count / kElements) : 0;
  exec.template for_each_pack<kInFlight>(
      num_packs, [&](uint32_t i) { return load(CudaWidth<kElements>{}, i); },
      [&](uint32_t i, const auto& loaded) { use(CudaWidth<kElements>{}, i, loaded); });
  const uint32_t first = num_packs * kElements;
  exec.template for_each_pack<1>(
      static_cast<uint32_t>(count) - first, [&](uint32_t i) { return load(CudaWidth<1>{}, first + i); },
      [&](uint32_t i, const auto& loaded) { use(CudaWidth<1>{}, first + i, loaded); });
}

DCOMM_DEVICE bool is_pack_aligned(const std::byte* a, const std::byte* b = nullptr) {
  return ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) & 15) == 0;
}

}  // namespace dcomm
