// The device's Kernels for wires whose elements share scales by blocks: what two_shot asks for. Floor: exec.
//
// A warp takes a strip of 128 elements at a time, one block or four, and each lane quads of four: user arrays are then
// read and written in whole lines, and four elements of six levels of the canonical sum fit a thread's registers. The
// lanes that hold a block tell each other its largest magnitude. Conversions are base/fp8.h's integer arithmetic, since
// sm_80 has no instructions for them; so all bits are the host's.
#pragma once

#include "base/fp8.h"
#include "exec/cuda_packs.cuh"
#include "schedule/block_layout.h"

namespace dcomm {

template <int kBlock>
class CudaBlockKernels : public CudaPacks<CudaF32, CudaF32, 0, true> {
  using Base = CudaPacks<CudaF32, CudaF32, 0, true>;
  static constexpr uint32_t kQuad = 4;
  static constexpr uint32_t kStrip = 128;
  static constexpr uint32_t kWarpLanes = gpu::kWarpLanes;
  static constexpr int kQuads = static_cast<int>(kStrip / kQuad / kWarpLanes);  // of a lane

 public:
  using Base::Base;

  template <class Exec>
  DCOMM_DEVICE void encode(Exec& exec, std::byte* slot, Range range) const {
    const Array mine{source(range), static_cast<uint32_t>(range.count)};
    for_each_strip(exec, range, [&](uint32_t first) {
      Quads own = load(mine, first);
      for (int k = 0; k < kQuads; ++k) this->divide_term(own.value[k]);
      const Coded coded = code(own);
      store(slot, first, range, coded);
    });
  }

  template <class Exec>
  DCOMM_DEVICE void decode(Exec& exec, Range range, const std::byte* slot) const {
    std::byte* const to = target(range);
    for_each_strip(exec, range, [&](uint32_t first) {
      DCOMM_UNROLL
      for (int k = 0; k < kQuads; ++k) {
        const uint32_t at = element_of(first, k);
        if (at >= range.count) continue;
        float value[kQuad];
        read_quad(slot, at, value);
        write_quad(to, range, at, value);
      }
    });
  }

  template <class Exec, class From, class To>
  DCOMM_DEVICE void reduce_canonical(Exec& exec, Range range, From&& from, To&& to) const {
    const Array mine{source(range), static_cast<uint32_t>(range.count)};
    std::byte* const result = target(range);
    for_each_strip(exec, range, [&](uint32_t first) {
      Quads own = load(mine, first);
      for (int k = 0; k < kQuads; ++k) this->divide_term(own.value[k]);
      const Coded terms = code(own);
      Quads sums;
      DCOMM_UNROLL
      for (int k = 0; k < kQuads; ++k) {
        const uint32_t at = element_of(first, k);
        // Beyond the range the own zeros alone: slots hold nothing there.
        sum_canonical<kQuad>(
            at < range.count ? exec.world_size() : 1,
            [&](int rank, float (&value)[kQuad]) {
              if (rank == exec.rank() || at >= range.count) {
                value_of(terms, k, value);
              } else {
                read_quad(from(rank), at, value);
              }
            },
            sums.value[k]);
      }
      const Coded coded = code(sums);
      DCOMM_ROLLED
      for (int peer = 0; peer < exec.world_size(); ++peer) {
        if (peer != exec.rank()) store(to(peer), first, range, coded);
      }
      DCOMM_UNROLL
      for (int k = 0; k < kQuads; ++k) {
        const uint32_t at = element_of(first, k);
        float value[kQuad];
        value_of(coded, k, value);
        if (at < range.count)
          write_quad(result, range, at, mutated(Mutation::kFp8BlockOwnerKeepsSum) ? sums.value[k] : value);
      }
    });
  }

 private:
  struct Array {
    const std::byte* elements;
    uint32_t count;
  };
  /// A lane's of a strip.
  struct Quads {
    float value[kQuads][kQuad];
  };
  struct Coded {
    uint32_t codes[kQuads];  // four e4m3 numbers each
    uint8_t scale[kQuads];
  };

  /// f(the strip's first element) for this warp's strips; all lanes, also of a strip that ends inside.
  template <class Exec, class F>
  DCOMM_DEVICE static void for_each_strip(const Exec& exec, Range range, const F& f) {
    constexpr uint32_t kStep = static_cast<uint32_t>(Exec::num_lanes()) / kWarpLanes * kStrip;
    const uint32_t count = static_cast<uint32_t>(range.count);
    DCOMM_ROLLED
    for (uint32_t first = static_cast<uint32_t>(exec.lane()) / kWarpLanes * kStrip; first < count; first += kStep) {
      f(first);
    }
  }
  DCOMM_DEVICE static uint32_t quad_of(int k) {
    return static_cast<uint32_t>(gpu::thread_index()) % kWarpLanes + static_cast<uint32_t>(k) * kWarpLanes;
  }
  DCOMM_DEVICE static uint32_t element_of(uint32_t first, int k) { return first + quad_of(k) * kQuad; }

  // ---- User arrays: zeros beyond their end; they may start anywhere. ----

  DCOMM_DEVICE static Quads load(const Array& from, uint32_t first) {
    const bool aligned = is_aligned(from.elements);
    Quads quads;
    DCOMM_UNROLL
    for (int k = 0; k < kQuads; ++k) {
      const uint32_t at = element_of(first, k);
      if (aligned && at + kQuad <= from.count) {
        UserBlock<kQuad>::load(from.elements, at / kQuad).widen(quads.value[k]);
        continue;
      }
      DCOMM_UNROLL
      for (uint32_t i = 0; i < kQuad; ++i) {
        float element[1] = {0.0f};
        if (at + i < from.count) UserBlock<1>::load(from.elements, at + i).widen(element);
        quads.value[k][i] = element[0];
      }
    }
    return quads;
  }
  DCOMM_DEVICE static void write_quad(std::byte* to, Range range, uint32_t at, const float (&value)[kQuad]) {
    if (is_aligned(to) && at + kQuad <= range.count) {
      return UserBlock<kQuad>::narrow(value).store(to, at / kQuad);
    }
    DCOMM_UNROLL
    for (uint32_t i = 0; i < kQuad; ++i) {
      const float element[1] = {value[i]};
      if (at + i < range.count) UserBlock<1>::narrow(element).store(to, at + i);
    }
  }

  // ---- Slots. ----

  DCOMM_DEVICE static constexpr BlockLayout layout() { return BlockLayout{kBlock}; }

  /// All lanes of a warp.
  DCOMM_DEVICE static Coded code(const Quads& quads) {
    uint32_t largest[kQuads];
    DCOMM_UNROLL
    for (int k = 0; k < kQuads; ++k) {
      largest[k] = 0;
      DCOMM_UNROLL
      for (uint32_t i = 0; i < kQuad; ++i) {
        const uint32_t magnitude = fp8_magnitude(f32_bits(quads.value[k][i]));
        if (magnitude > largest[k]) largest[k] = magnitude;
      }
    }
    gpu::spread_largest(largest, kBlock / static_cast<int>(kQuad));
    Coded coded;
    DCOMM_UNROLL
    for (int k = 0; k < kQuads; ++k) {
      coded.scale[k] = fp8_scale_code(largest[k]);
      const float inverse = fp8_inverse_scale(coded.scale[k]);
      uint32_t codes = 0;
      DCOMM_UNROLL
      for (uint32_t i = 0; i < kQuad; ++i) {
        codes |= static_cast<uint32_t>(e4m3_from_f32(quads.value[k][i] * inverse)) << (8 * i);
      }
      coded.codes[k] = coded.scale[k] == kScaleNan ? 0 : codes;
    }
    return coded;
  }
  DCOMM_DEVICE static void decode_word(uint32_t codes, float scale, float (&value)[kQuad]) {
    DCOMM_UNROLL
    for (uint32_t i = 0; i < kQuad; ++i) value[i] = fp8_value(static_cast<uint8_t>(codes >> (8 * i)), scale);
  }
  DCOMM_DEVICE static void value_of(const Coded& coded, int k, float (&value)[kQuad]) {
    decode_word(coded.codes[k], fp8_scale(coded.scale[k]), value);
  }
  DCOMM_DEVICE static void read_quad(const std::byte* slot, uint32_t at, float (&value)[kQuad]) {
    const uint32_t codes = gpu::load_element(reinterpret_cast<const uint32_t*>(slot + layout().element_offset(at)));
    const uint8_t scale =
        gpu::load_element(reinterpret_cast<const uint8_t*>(slot + layout().scale_offset(at / kBlock)));
    decode_word(codes, fp8_scale(scale), value);
  }
  /// Whole blocks: the last one with zeros.
  DCOMM_DEVICE static void store(std::byte* slot, uint32_t first, Range range, const Coded& coded) {
    DCOMM_UNROLL
    for (int k = 0; k < kQuads; ++k) {
      const uint32_t at = element_of(first, k);
      if (at / kBlock * kBlock >= range.count) continue;
      gpu::store_element(reinterpret_cast<uint32_t*>(slot + layout().element_offset(at)), coded.codes[k]);
      if (at % kBlock == 0) {
        gpu::store_element(reinterpret_cast<uint8_t*>(slot + layout().scale_offset(at / kBlock)), coded.scale[k]);
      }
    }
  }
};

}  // namespace dcomm
