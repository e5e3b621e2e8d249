// Tile functions for 64-bit Arm, where NEON and its float16 conversions are part of the baseline. Floor: exec.
// Compiled for aarch64 only.
#include <arm_neon.h>

#include "exec/host_kernels.h"

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
