// Tile functions for AVX-512 (F, BW, DQ, VL). Floor: exec. Compiled with those target flags and without
// -mfma; called only after select_kernel_table has asked the CPU.
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own "undefined" vectors inside the intrinsics raise it falsely (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "base/fp8.h"
#include "exec/host_kernels.h"
#include "schedule/block_layout.h"

namespace dcomm {
namespace {

constexpr size_t kVectorBytes = 64;

#include "exec/tile_functions.inc"

struct Avx512 {
  // One instruction in place of a comparison and a blend: of the eight classes of the value, the two NaNs
  // (lowest digits) take the first operand and all others stay.
  static constexpr int kKeepAllButNan = 0x11111100;

  static DCOMM_INLINE F32V canonical(F32V x) {
    const F32V nan = reinterpret_cast<F32V>(U32V{} + 0x7fc00000u);
    return _mm512_fixupimm_ps(nan, x, _mm512_set1_epi32(kKeepAllButNan), 0);
  }
  static DCOMM_INLINE F64V canonical(F64V x) {
    const F64V nan = reinterpret_cast<F64V>(U64V{} + 0x7ff8000000000000u);
    return _mm512_fixupimm_pd(nan, x, _mm512_set1_epi64(kKeepAllButNan), 0);
  }

  static DCOMM_INLINE Pack<U32V> widen_u16(U16V x) {
    const __m512i all = reinterpret_cast<__m512i>(x);
    return {reinterpret_cast<U32V>(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(all))),
            reinterpret_cast<U32V>(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(all, 1)))};
  }

  static DCOMM_INLINE U16V narrow_high(U32V a, U32V b) {
    // Words 1, 3, ..., 63 of the two vectors: one instruction in place of two shifts and a pack.
    const U16V odd_words = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                            33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return reinterpret_cast<U16V>(_mm512_permutex2var_epi16(
        reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(odd_words), reinterpret_cast<__m512i>(b)));
  }

  static DCOMM_INLINE Pack<F32V> f16_widen(const Pack<U16Half>& x) {
    return {_mm512_cvtph_ps(reinterpret_cast<__m256i>(x.a)), _mm512_cvtph_ps(reinterpret_cast<__m256i>(x.b))};
  }

  static DCOMM_INLINE Pack<U16Half> f16_narrow(const Pack<F32V>& x) {
    return {reinterpret_cast<U16Half>(_mm512_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT)),
            reinterpret_cast<U16Half>(_mm512_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT))};
  }

  static DCOMM_INLINE bool f16_any_special(const Pack<U16Half>& x) {
    const U16Half special = ((x.a & 0x7c00u) == 0x7c00u) | ((x.b & 0x7c00u) == 0x7c00u);
    return _mm256_movemask_epi8(reinterpret_cast<__m256i>(special)) != 0;
  }

  static DCOMM_INLINE uint32_t max_lane(U32V x) { return _mm512_reduce_max_epu32(reinterpret_cast<__m512i>(x)); }

  static DCOMM_INLINE void narrow_to_bytes(const U32V* codes, char* to) {
    for (int i = 0; i < 2; ++i) {
      const __m128i bytes = _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(codes[i]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to) + i, bytes);
    }
  }

  static DCOMM_INLINE void widen_e4m3(const char* from, F32V* wide) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const auto halves = reinterpret_cast<__m512i>(e4m3_as_f16(reinterpret_cast<U16V>(_mm512_cvtepi8_epi16(codes))));
    wide[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(halves)) * 256.0f;
    wide[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)) * 256.0f;
  }

  // Masked bytes are neither read nor written: the masked instructions do not fault on them.
  static DCOMM_INLINE __mmask64 first_bytes(size_t num_bytes) {
    return num_bytes < kVectorBytes ? (uint64_t{1} << num_bytes) - 1 : ~uint64_t{0};
  }

  static DCOMM_INLINE U32V load_partial(const char* from, size_t num_bytes) {
    return reinterpret_cast<U32V>(_mm512_maskz_loadu_epi8(first_bytes(num_bytes), from));
  }

  static DCOMM_INLINE void store_partial(char* to, U32V x, size_t num_bytes) {
    _mm512_mask_storeu_epi8(to, first_bytes(num_bytes), reinterpret_cast<__m512i>(x));
  }
};

constexpr KernelTable kTable{"avx512", &find_functions<Avx512>};

}  // namespace

const KernelTable* kernel_table_avx512() { return &kTable; }

}  // namespace dcomm
