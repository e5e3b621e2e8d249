// Tile functions for the baseline instruction set of the target, and the reference for the other tables.
// Floor: exec. Vectors are 16 bytes (SSE2, NEON, or plain registers); float16 goes lane by lane through
// base/half.h.
#include "base/fp8.h"
#include "base/half.h"
#include "exec/host_kernels.h"
#include "schedule/block_layout.h"

namespace dcomm {
namespace {

constexpr size_t kVectorBytes = 16;

#include "exec/tile_functions.inc"

struct Scalar {
  static DCOMM_INLINE F32V canonical(F32V x) { return select_canonical(x); }
  static DCOMM_INLINE F64V canonical(F64V x) { return select_canonical(x); }

  static DCOMM_INLINE Pack<U32V> widen_u16(U16V x) {
    Pack<U32V> wide;
    for (int i = 0; i < 4; ++i) wide.a[i] = x[i];
    for (int i = 0; i < 4; ++i) wide.b[i] = x[i + 4];
    return wide;
  }

  static DCOMM_INLINE U16V narrow_high(U32V a, U32V b) {
    U16V narrow;
    for (int i = 0; i < 4; ++i) narrow[i] = static_cast<uint16_t>(a[i] >> 16);
    for (int i = 0; i < 4; ++i) narrow[i + 4] = static_cast<uint16_t>(b[i] >> 16);
    return narrow;
  }

  // Not inlined, so that `flatten` applies to them: the functions of half.h leave no weak copy here.
  [[gnu::noinline, gnu::flatten]] static Pack<F32V> f16_widen(const Pack<U16Half>& x) {
    Pack<F32V> wide;
    for (int i = 0; i < 4; ++i) wide.a[i] = f16_to_f32(x.a[i]);
    for (int i = 0; i < 4; ++i) wide.b[i] = f16_to_f32(x.b[i]);
    return wide;
  }

  [[gnu::noinline, gnu::flatten]] static Pack<U16Half> f16_narrow(const Pack<F32V>& x) {
    Pack<U16Half> narrow;
    for (int i = 0; i < 4; ++i) narrow.a[i] = f16_from_f32(x.a[i]);
    for (int i = 0; i < 4; ++i) narrow.b[i] = f16_from_f32(x.b[i]);
    return narrow;
  }

  // f16_to_f32 keeps a NaN's bits already.
  static DCOMM_INLINE bool f16_any_special(const Pack<U16Half>&) { return false; }

  static DCOMM_INLINE uint32_t max_lane(U32V x) {
    uint32_t largest = 0;
    for (int i = 0; i < 4; ++i) largest = x[i] > largest ? x[i] : largest;
    return largest;
  }

  static DCOMM_INLINE void narrow_to_bytes(const U32V* codes, char* to) {
    for (size_t i = 0; i < kRunBytes; ++i) to[i] = static_cast<char>(codes[i / 4][i % 4]);
  }

  static DCOMM_INLINE void widen_e4m3(const char* from, F32V* wide) {
    for (size_t i = 0; i < kRunBytes; ++i) wide[i / 4][i % 4] = e4m3_to_f32(static_cast<uint8_t>(from[i]));
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

constexpr KernelTable kTable{"scalar", &find_functions<Scalar>};

}  // namespace

const KernelTable* kernel_table_scalar() { return &kTable; }

}  // namespace dcomm
