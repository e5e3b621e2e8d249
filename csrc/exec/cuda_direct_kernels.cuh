// The device's Kernels for sums of arrays where they lie, of all ranks: all_reduce_direct. Floor: exec.
//
// Parts of arrays that start at one offset from the ranks' bases, which are multiples of 4096 bytes: so they are
// aligned alike.
#pragma once

#include "exec/cuda_reduce_kernels.cuh"

namespace dcomm {

template <class Type, int kRanks, bool kDividesTerms>
class CudaDirectKernels : public CudaReduceKernels<Type, Type, kRanks, kDividesTerms> {
  using Base = CudaReduceKernels<Type, Type, kRanks, kDividesTerms>;

 public:
  /// all: the arrays of every rank, as this GPU maps them.
  DCOMM_DEVICE CudaDirectKernels(const CudaArrays* all, int rank, float divisor)
      : Base(all[rank], divisor), all_(all) {}

  /// The sum into every rank's result.
  template <class Exec>
  DCOMM_DEVICE void reduce_everywhere(Exec& exec, Range range) const {
    const size_t offset = range.offset * Base::kUserBytes;
    this->reduce_canonical(
        exec, range, [&](int peer) { return static_cast<const std::byte*>(all_[peer].in) + offset; },
        [&](int peer) { return static_cast<std::byte*>(all_[peer].out) + offset; });
  }
  /// The sum into this rank's.
  template <class Exec>
  DCOMM_DEVICE void reduce_here(Exec& exec, Range range) const {
    const size_t offset = range.offset * Base::kUserBytes;
    this->reduce_canonical(
        exec, range, [&](int peer) { return static_cast<const std::byte*>(all_[peer].in) + offset; }, NoOutputs{});
  }

 private:
  const CudaArrays* const all_;
};

}  // namespace dcomm
