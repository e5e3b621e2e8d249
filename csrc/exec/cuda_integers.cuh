// Integers as the device adds them: by width, since they wrap and a sign changes no bit of a sum. Floor: exec.
//
// Elements stay packed as they are stored; what is narrower than a word is added several at a time.
#pragma once

#include "exec/cuda_elements.cuh"

namespace dcomm {

// ---- Element types; Lane: what one addition takes. ----

/// int8 and uint8, four at once: the highest bits are added without carry, so that no element runs over into the next.
/// Source: Lamport, "Multiple byte processing with full-word instructions", CACM 1975.
struct CudaI8 {
  using Stored = uint8_t;
  using Lane = uint32_t;
  static constexpr DType kDType = DType::kI8;
  DCOMM_DEVICE static Lane add(Lane a, Lane b) {
    constexpr Lane kHighest = 0x80808080u;
    return ((a & ~kHighest) + (b & ~kHighest)) ^ ((a ^ b) & kHighest);
  }
};

struct CudaI32 {
  using Stored = uint32_t;
  using Lane = uint32_t;
  static constexpr DType kDType = DType::kI32;
  DCOMM_DEVICE static Lane add(Lane a, Lane b) { return a + b; }
};

struct CudaI64 {
  using Stored = uint64_t;
  using Lane = uint64_t;
  static constexpr DType kDType = DType::kI64;
  DCOMM_DEVICE static Lane add(Lane a, Lane b) { return a + b; }
};

/// A sum of bool is or; of bytes other than 0 and 1 too, as on the host.
struct CudaBool {
  using Stored = uint8_t;
  using Lane = uint32_t;
  static constexpr DType kDType = DType::kBool;
  DCOMM_DEVICE static Lane add(Lane a, Lane b) { return a | b; }
};

/// sum += term, element by element.
template <class Element, int kCount>
DCOMM_DEVICE void add_integers(CudaBlock<Element, kCount>& sum, const CudaBlock<Element, kCount>& term) {
  if constexpr (kCount == 1) {
    sum.element = static_cast<typename Element::Stored>(Element::add(sum.element, term.element));
  } else if constexpr (sizeof(typename Element::Lane) == 4) {
    DCOMM_UNROLL
    for (int w = 0; w < CudaBlock<Element, kCount>::kWords; ++w)
      sum.words[w] = Element::add(sum.words[w], term.words[w]);
  } else {
    const auto lane = [](const uint32_t* words) { return words[0] | static_cast<uint64_t>(words[1]) << 32; };
    DCOMM_UNROLL
    for (int w = 0; w < CudaBlock<Element, kCount>::kWords; w += 2) {
      const uint64_t total = Element::add(lane(sum.words + w), lane(term.words + w));
      sum.words[w] = static_cast<uint32_t>(total);
      sum.words[w + 1] = static_cast<uint32_t>(total >> 32);
    }
  }
}

}  // namespace dcomm
