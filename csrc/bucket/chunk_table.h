// The chunk table of a message that lies in many arrays: from an element's number to its address. Floor: bucket.
//
// Made once for a list of arrays and used again and again; it borrows them. A GPU takes it cut into short runs, copied
// into its own memory (launch/cuda_kernels_lists.cu).
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "protocol/elements.h"

namespace dcomm {

class ChunkTable {
 public:
  /// Elements of the table's dtype.
  struct Array {
    void* data = nullptr;
    size_t count = 0;
  };

  ChunkTable(const std::vector<Array>& arrays, DType dtype);
  ChunkTable(const ChunkTable&) = delete;  // spans() points into it
  ChunkTable& operator=(const ChunkTable&) = delete;

  DType dtype() const { return dtype_; }
  size_t count() const { return count_; }
  size_t num_arrays() const { return pointers_.size(); }
  const void* data(size_t index) const { return pointers_[index]; }
  /// In components where the dtype is complex, as executors count.
  const Spans& spans() const { return spans_; }

  /// Two of the arrays share memory: such a list can be read, not written.
  bool overlaps_itself() const { return overlaps_itself_; }
  bool overlaps(const ChunkTable& other) const;
  /// Every element lies where other's does.
  bool is_same_memory(const ChunkTable& other) const;

 private:
  using Extent = std::pair<uintptr_t, uintptr_t>;  // [begin, end)

  DType dtype_;
  size_t count_ = 0;
  std::vector<std::byte*> pointers_;
  std::vector<uint64_t> starts_;
  std::vector<Extent> extents_;  // of arrays that are not empty, by address
  bool overlaps_itself_ = false;
  Spans spans_;
};

/// The arrays in runs of at most `most` elements, in order; array i lies at offsets[i] in the whole, which may have
/// gaps (bucket/plan.h pads). For devices, whose blocks take runs of about equal length.
std::vector<ArrayRun> cut_arrays(const std::vector<ChunkTable::Array>& arrays, const std::vector<uint64_t>& offsets,
                                 DType dtype, size_t most);

}  // namespace dcomm
