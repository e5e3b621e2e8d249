// Tile functions for AVX2 + F16C. Floor: exec. Compiled with -mavx2 -mf16c and without -mfma; called only
// after select_kernel_table has asked the CPU.
#include <immintrin.h>

#include "base/fp8.h"
#include "exec/host_kernels.h"
#include "schedule/block_layout.h"

namespace dcomm {
namespace {

constexpr size_t kVectorBytes = 32;

#include "exec/tile_functions.inc"

struct Avx2 {
  static DCOMM_INLINE F32V canonical(F32V x) { return select_canonical(x); }
  static DCOMM_INLINE F64V canonical(F64V x) { return select_canonical(x); }

  static DCOMM_INLINE Pack<U32V> widen_u16(U16V x) {
    const __m256i all = reinterpret_cast<__m256i>(x);
    return {reinterpret_cast<U32V>(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(all))),
            reinterpret_cast<U32V>(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(all, 1)))};
  }

  static DCOMM_INLINE U16V narrow_high(U32V a, U32V b) {
    const __m256i packed = _mm256_packus_epi32(reinterpret_cast<__m256i>(a >> 16), reinterpret_cast<__m256i>(b >> 16));
    return reinterpret_cast<U16V>(_mm256_permute4x64_epi64(packed, 0xd8));  // the pack works per 128 bits
  }

  static DCOMM_INLINE Pack<F32V> f16_widen(const Pack<U16Half>& x) {
    return {_mm256_cvtph_ps(reinterpret_cast<__m128i>(x.a)), _mm256_cvtph_ps(reinterpret_cast<__m128i>(x.b))};
  }

  static DCOMM_INLINE Pack<U16Half> f16_narrow(const Pack<F32V>& x) {
    return {reinterpret_cast<U16Half>(_mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT)),
            reinterpret_cast<U16Half>(_mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT))};
  }

  static DCOMM_INLINE bool f16_any_special(const Pack<U16Half>& x) {
    const U16Half special = ((x.a & 0x7c00u) == 0x7c00u) | ((x.b & 0x7c00u) == 0x7c00u);
    return _mm_movemask_epi8(reinterpret_cast<__m128i>(special)) != 0;
  }

  static DCOMM_INLINE uint32_t max_lane(U32V x) {
    const __m256i all = reinterpret_cast<__m256i>(x);
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
  }

  static DCOMM_INLINE void narrow_to_bytes(const U32V* codes, char* to) {
    const auto at = [&](int i) __attribute__((always_inline)) { return reinterpret_cast<__m256i>(codes[i]); };
    const __m256i low = _mm256_packus_epi32(at(0), at(1));
    const __m256i high = _mm256_packus_epi32(at(2), at(3));
    // The packs work per 128 bits: their words of 4 codes are put in order.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
  }

  static DCOMM_INLINE void widen_e4m3(const char* from, F32V* wide) {
    for (int i = 0; i < 2; ++i) {
      const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i);
      const auto halves = reinterpret_cast<__m256i>(e4m3_as_f16(reinterpret_cast<U16V>(_mm256_cvtepi8_epi16(codes))));
      wide[2 * i] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves)) * 256.0f;
      wide[2 * i + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)) * 256.0f;
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

constexpr KernelTable kTable{"avx2", &find_functions<Avx2>};

}  // namespace

const KernelTable* kernel_table_avx2() { return &kTable; }

}  // namespace dcomm
