// Default rounding and no flush-to-zero while dcomm computes: a caller's setting must not change bits. Floor: exec.
#pragma once

#include <cstdint>

#include "base/macros.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dcomm {

class FloatEnvironment {
 public:
#if defined(__x86_64__)
  FloatEnvironment() : saved_(_mm_getcsr()) {
    if (DCOMM_UNLIKELY((saved_ & ~kExceptionFlags) != kDefault)) _mm_setcsr(kDefault);
  }
  ~FloatEnvironment() {
    if (DCOMM_UNLIKELY((saved_ & ~kExceptionFlags) != kDefault)) _mm_setcsr(saved_);
  }

 private:
  static constexpr unsigned kDefault = 0x1f80u;
  static constexpr unsigned kExceptionFlags = 0x3fu;
  unsigned saved_;
#elif defined(__aarch64__)
  FloatEnvironment() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    if (DCOMM_UNLIKELY(saved_ != 0)) __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~FloatEnvironment() {
    if (DCOMM_UNLIKELY(saved_ != 0)) __asm__ volatile("msr fpcr, %0" : : "r"(saved_));
  }

 private:
  uint64_t saved_;
#endif
};

}  // namespace dcomm
