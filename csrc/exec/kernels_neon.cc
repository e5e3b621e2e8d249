// Tile functions for 64-bit Arm, where NEON and its float16 conversions are part of the baseline. Floor: exec.
// Compiled for aarch64 only.
#include <arm_neon.h>

#include "base/fp8.h"
#include "exec/host_kernels.h"
#include "schedule/block_layout.h"

namespace dcomm {
namespace {

constexpr size_t kVectorBytes = 16;

#include "exec/tile_functions.inc"

struct Neon {
  static DCOMM_INLINE F32V canonical(F32V x) { return select_canonical(x); }
  static DCOMM_INLINE F64V canonical(F64V x) { return select_canonical(x); }

  static DCOMM_INLINE Pack<U32V> widen_u16(U16V x) {
    const uint16x8_t all = reinterpret_cast<uint16x8_t>(x);
    return {reinterpret_cast<U32V>(vmovl_u16(vget_low_u16(all))), reinterpret_cast<U32V>(vmovl_high_u16(all))};
  }

  static DCOMM_INLINE U16V narrow_high(U32V a, U32V b) {
    // Words 1, 3, ..., 15 of the two vectors.
    return reinterpret_cast<U16V>(vuzp2q_u16(reinterpret_cast<uint16x8_t>(a), reinterpret_cast<uint16x8_t>(b)));
  }

  static DCOMM_INLINE Pack<F32V> f16_widen(const Pack<U16Half>& x) {
    return {reinterpret_cast<F32V>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(x.a))),
            reinterpret_cast<F32V>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(x.b)))};
  }

  static DCOMM_INLINE Pack<U16Half> f16_narrow(const Pack<F32V>& x) {
    return {reinterpret_cast<U16Half>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(x.a))),
            reinterpret_cast<U16Half>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(x.b)))};
  }

  static DCOMM_INLINE bool f16_any_special(const Pack<U16Half>& x) {
    const U16Half special = ((x.a & 0x7c00u) == 0x7c00u) | ((x.b & 0x7c00u) == 0x7c00u);
    return vmaxv_u16(reinterpret_cast<uint16x4_t>(special)) != 0;
  }

  static DCOMM_INLINE uint32_t max_lane(U32V x) { return vmaxvq_u32(reinterpret_cast<uint32x4_t>(x)); }

  static DCOMM_INLINE void narrow_to_bytes(const U32V* codes, char* to) {
    for (int i = 0; i < 8; i += 4) {
      const auto at = [&](int k) __attribute__((always_inline)) {
        return vmovn_u32(reinterpret_cast<uint32x4_t>(codes[i + k]));
      };
      const uint16x8_t low = vcombine_u16(at(0), at(1));
      const uint16x8_t high = vcombine_u16(at(2), at(3));
      vst1q_u8(reinterpret_cast<uint8_t*>(to) + 4 * i, vcombine_u8(vmovn_u16(low), vmovn_u16(high)));
    }
  }

  static DCOMM_INLINE void widen_e4m3(const char* from, F32V* wide) {
    for (int i = 0; i < 4; ++i) {
      const int8x8_t codes = vld1_s8(reinterpret_cast<const int8_t*>(from) + 8 * i);
      const auto halves = reinterpret_cast<uint16x8_t>(e4m3_as_f16(reinterpret_cast<U16V>(vmovl_s8(codes))));
      wide[2 * i] = reinterpret_cast<F32V>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(vget_low_u16(halves)))) * 256.0f;
      wide[2 * i + 1] =
          reinterpret_cast<F32V>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(vget_high_u16(halves)))) * 256.0f;
    }
  }

  [[gnu::noinline]] static U32V load_partial(const char* from, size_t num_bytes) {
    U32V x{};
    __builtin_memcpy(&x, from, num_bytes);
    return x;
  }

  [[gnu::noinline]] static void store_partial(char* to, U32V x, size_t num_bytes) {
    __builtin_memcpy(to, &x, num_bytes);
  }
};

constexpr KernelTable kTable{"neon", &find_functions<Neon>};

}  // namespace

const KernelTable* kernel_table_neon() { return &kTable; }

}  // namespace dcomm
