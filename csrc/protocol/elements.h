// Where a message's elements lie: in one array, or in many, one after the other. Floor: protocol (host and device).
//
//   element   0      5 6          11           a Loader is read, a Storer is written; tiles and slots know nothing of
//   arrays    [  a  ][b][    c    ]            arrays: a range of elements is walked run by run, each run in one array
//
// The order of summation is a function of the element's number, so many arrays give the bits of one that holds them
// all.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/macros.h"
#include "base/mutation.h"

namespace dcomm {

/// Arrays by number, in plain pointers: for kernels as for the host. csrc/bucket/chunk_table.h owns such tables.
struct Spans {
  std::byte* const* arrays = nullptr;
  const uint64_t* starts = nullptr;  // num_arrays + 1 numbers: the elements before each array; last, all of them
  size_t num_arrays = 0;

  /// The array that holds `element`, which is below the total; empty arrays hold none.
  DCOMM_HOST_DEVICE size_t find(uint64_t element) const {
    size_t low = 0;
    size_t high = num_arrays;
    while (high - low > 1) {
      const size_t middle = low + (high - low) / 2;
      (starts[middle] <= element ? low : high) = middle;
    }
    return low;
  }
};

/// A run, or a part of one, in a list made for the blocks of a device (csrc/bucket/chunk_table.h cuts it).
struct ArrayRun {
  std::byte* data = nullptr;
  uint64_t offset = 0;  // elements from the start of the whole
  uint64_t count = 0;   // elements; fewer than 2^32
};

/// Byte: const std::byte where it is read.
template <class Byte>
struct Elements {
  Byte* array = nullptr;         // one array,
  const Spans* spans = nullptr;  // or these

  DCOMM_HOST_DEVICE Elements(Byte* contiguous = nullptr) : array(contiguous) {}
  DCOMM_HOST_DEVICE explicit Elements(const Spans& many) : spans(&many) {}

  /// f(done, n, pointer): elements [first + done, + n) lie at `pointer`; in order, for all of [first, first + count).
  template <class F>
  DCOMM_HOST_DEVICE void for_each_run(size_t first, size_t count, size_t element_bytes, F&& f) const {
    if (DCOMM_LIKELY(spans == nullptr)) return f(size_t{0}, count, array + first * element_bytes);
    if (count == 0) return;
    size_t number = spans->find(first);
    for (size_t done = 0; done < count; ++number) {
      const size_t left = static_cast<size_t>(spans->starts[number + 1]) - (first + done);
      const size_t n = left < count - done ? left : count - done;
      const size_t before =
          mutated(Mutation::kRunFromStart) ? 0 : first + done - static_cast<size_t>(spans->starts[number]);
      if (n != 0) f(done, n, spans->arrays[number] + before * element_bytes);
      done += n;
    }
  }
};

using Loader = Elements<const std::byte>;
using Storer = Elements<std::byte>;

}  // namespace dcomm
