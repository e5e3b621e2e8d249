// The device's Kernels for collectives that only move data: broadcast, all_gather, gather, scatter, all_to_all,
// send and recv. Floor: exec.
//
// Their elements are bytes: one kernel serves every dtype.
#pragma once

#include "exec/cuda_bytes.cuh"
#include "protocol/envelope.h"
#include "schedule/partition.h"

namespace dcomm {

class CudaMoveKernels {
 public:
  DCOMM_DEVICE explicit CudaMoveKernels(const CudaArrays& arrays)
      : in_(static_cast<const std::byte*>(arrays.in)), out_(static_cast<std::byte*>(arrays.out)) {}

  template <class Exec>
  DCOMM_DEVICE void encode(Exec& exec, std::byte* slot, Range range) const {
    move_bytes<16>(exec, slot, in_ + range.offset, range.count);
  }
  template <class Exec>
  DCOMM_DEVICE void decode(Exec& exec, Range range, const std::byte* slot) const {
    move_bytes<16>(exec, out_ + range.offset, slot, range.count);
  }
  template <class Exec>
  DCOMM_DEVICE void keep(Exec& exec, size_t to_offset, Range range) const {
    if (out_ + to_offset != in_ + range.offset) move_bytes<16>(exec, out_ + to_offset, in_ + range.offset, range.count);
  }
  template <class Exec>
  DCOMM_DEVICE void put_envelope(Exec& exec, std::byte* slot, const Envelope& envelope) const {
    if (exec.lane() != 0) return;
    auto* const words = reinterpret_cast<uint32_t*>(slot);
    gpu::store_element(words, static_cast<uint32_t>(envelope.count));
    gpu::store_element(words + 1, static_cast<uint32_t>(envelope.count >> 32));
    gpu::store_element(words + 2, static_cast<uint32_t>(envelope.tag));
    gpu::store_element(words + 3, static_cast<uint32_t>(envelope.dtype));
  }
  template <class Exec>
  DCOMM_DEVICE void get_envelope(Exec&, Envelope& envelope, const std::byte* slot) const {
    const auto* const words = reinterpret_cast<const uint32_t*>(slot);
    envelope.count = gpu::load_element(words) | static_cast<uint64_t>(gpu::load_element(words + 1)) << 32;
    envelope.tag = static_cast<int32_t>(gpu::load_element(words + 2));
    envelope.dtype = static_cast<DType>(gpu::load_element(words + 3));
  }

 private:
  const std::byte* const in_;
  std::byte* const out_;
};

/// Where the blocks of an all-to-all lie: all of one length.
struct CudaEqualBlocks {
  size_t block_count;
  size_t slot_count;
  int num_channels;
  DCOMM_DEVICE Range send_block(int peer) const { return {static_cast<size_t>(peer) * block_count, block_count}; }
  DCOMM_DEVICE Range recv_block(int peer) const { return send_block(peer); }
};

}  // namespace dcomm
