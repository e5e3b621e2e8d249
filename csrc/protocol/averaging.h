// Where an average divides. Floor: protocol (host and device).
#pragma once

#include "base/dtype.h"

namespace dcomm {

/// True: each term is divided in float32 before it is cast or added. A narrowed wire does so, and so do a ring
/// and a tree, whose partial sums travel in half precision and could overflow where the mean does not. False: the sum
/// is divided once, at the end.
DCOMM_HOST_DEVICE constexpr bool divides_terms(DType dtype, DType wire, bool sums_travel) {
  return is_narrow(wire) && (wire != dtype || sums_travel);
}

}  // namespace dcomm
