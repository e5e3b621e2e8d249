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

  /// f(for_each_of_mine) for this lane's packs, kUnroll at a time: for_each_of_mine(g) calls g(k, i) for each of these,
  /// i being the k-th one. For what needs several passes over them, kept in registers.
  template <int kUnroll, class F>
  DCOMM_DEVICE void for_each_packs(uint32_t num_packs, const F& f) const {
    constexpr uint32_t kStride = static_cast<uint32_t>(num_lanes());
    for (uint32_t i = static_cast<uint32_t>(lane()); i < num_packs; i += kUnroll * kStride) {
      f([&](const auto& g) {
        DCOMM_UNROLL
        for (int k = 0; k < kUnroll; ++k) {
          const uint32_t at = i + static_cast<uint32_t>(k) * kStride;
          if (k == 0 || at < num_packs) g(k, at);
        }
      });
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

/// f(CudaWidth, for_each_of_mine): as for_each_block, by CudaLanes::for_each_packs.
template <int kUnroll, int kElements, class Exec, class F>
DCOMM_DEVICE void for_each_blocks(Exec& exec, bool aligned, size_t count, const F& f) {
  const uint32_t num_packs = aligned ? static_cast<uint32_t>(count / kElements) : 0;
  exec.template for_each_packs<kUnroll>(
      num_packs, [&](const auto& for_each_of_mine) { f(CudaWidth<kElements>{}, for_each_of_mine); });
  const uint32_t first = num_packs * kElements;
  exec.template for_each_packs<1>(static_cast<uint32_t>(count) - first, [&](const auto& for_each_of_mine) {
    f(CudaWidth<1>{}, [&](const auto& g) { for_each_of_mine([&](int k, uint32_t i) { g(k, first + i); }); });
  });
}

DCOMM_DEVICE bool is_pack_aligned(const std::byte* a, const std::byte* b = nullptr) {
  return ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) & 15) == 0;
}

}  // namespace dcomm
