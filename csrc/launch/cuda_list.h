// Many arrays on a GPU into one and back: the host's handle of a list in device memory. Floor: launch (plain C++).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "bucket/chunk_table.h"
#include "launch/cuda_api.h"

namespace dcomm {

/// Compiled, not run on a GPU; the kernels are emulated in tests/cc/cuda_list_checks.cc.
class CudaArrayList {
 public:
  /// arrays: in device memory, borrowed. offsets: where each lies in the whole, in elements. Allocates, and waits for
  /// the GPU. Throws kCuda where there is no GPU, kInvalidArgument for lists of unequal length.
  CudaArrayList(int device, const std::vector<ChunkTable::Array>& arrays, const std::vector<uint64_t>& offsets,
                DType dtype);
  ~CudaArrayList();
  CudaArrayList(const CudaArrayList&) = delete;
  CudaArrayList& operator=(const CudaArrayList&) = delete;

  /// whole = scale * the arrays; one launch on `stream`, which may be captured. Throws kInvalidArgument for dtypes that
  /// do not go together (launch/cuda_api.h).
  void pack(void* whole, DType dtype, double scale, void* stream) const { copy(true, whole, dtype, scale, stream); }
  /// The arrays = scale * whole.
  void unpack(void* whole, DType dtype, double scale, void* stream) const { copy(false, whole, dtype, scale, stream); }

 private:
  void copy(bool packs, void* whole, DType dtype, double scale, void* stream) const;

  DcommCudaList* list_ = nullptr;
};

}  // namespace dcomm
