// What goes before the data of a message from rank to rank. Floor: protocol.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace dcomm {

/// The first slot of every message: the receiver compares it with what it expects.
struct Envelope {
  uint64_t count = 0;  // elements
  int32_t tag = 0;     // chosen by the callers: a receiver takes messages of one tag in order, and tags in any order
  DType dtype = DType::kU8;
  uint8_t unused[3] = {};
};
static_assert(sizeof(Envelope) == 16);

}  // namespace dcomm
