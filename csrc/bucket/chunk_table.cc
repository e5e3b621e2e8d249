#include "bucket/chunk_table.h"

#include <algorithm>

namespace dcomm {

ChunkTable::ChunkTable(const std::vector<Array>& arrays, DType dtype) : dtype_(dtype) {
  const uint64_t components = is_complex(dtype) ? 2 : 1;
  pointers_.reserve(arrays.size());
  starts_.reserve(arrays.size() + 1);
  extents_.reserve(arrays.size());
  for (const Array& array : arrays) {
    pointers_.push_back(static_cast<std::byte*>(array.data));
    starts_.push_back(components * count_);
    count_ += array.count;
    const auto begin = reinterpret_cast<uintptr_t>(array.data);
    if (array.count != 0) extents_.emplace_back(begin, begin + array.count * dtype_bytes(dtype));
  }
  starts_.push_back(components * count_);
  std::sort(extents_.begin(), extents_.end());
  for (size_t i = 1; i < extents_.size(); ++i) {
    overlaps_itself_ = overlaps_itself_ || extents_[i].first < extents_[i - 1].second;
  }
  spans_ = {pointers_.data(), starts_.data(), pointers_.size()};
}

bool ChunkTable::overlaps(const ChunkTable& other) const {
  size_t i = 0;
  size_t j = 0;
  while (i < extents_.size() && j < other.extents_.size()) {
    const Extent& mine = extents_[i];
    const Extent& theirs = other.extents_[j];
    if (mine.first < theirs.second && theirs.first < mine.second) return true;
    // The one that begins first ends before the other begins, and so before all that follow.
    mine.first < theirs.first ? ++i : ++j;
  }
  return false;
}

bool ChunkTable::is_same_memory(const ChunkTable& other) const {
  return this == &other || (dtype_ == other.dtype_ && pointers_ == other.pointers_ && starts_ == other.starts_);
}

std::vector<ArrayRun> cut_arrays(const std::vector<ChunkTable::Array>& arrays, const std::vector<uint64_t>& offsets,
                                 DType dtype, size_t most) {
  std::vector<ArrayRun> runs;
  for (size_t i = 0; i < arrays.size(); ++i) {
    auto* const data = static_cast<std::byte*>(arrays[i].data);
    for (size_t done = 0; done < arrays[i].count; done += most) {
      const size_t left = arrays[i].count - done;
      runs.push_back({data + done * dtype_bytes(dtype), offsets[i] + done, left < most ? left : most});
    }
  }
  return runs;
}

}  // namespace dcomm
