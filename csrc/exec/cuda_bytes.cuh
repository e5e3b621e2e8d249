// Bytes from one place to another by all threads of a block, in the widest packs that both addresses allow. Floor:
// exec.
#pragma once

#include "exec/cuda_block_exec.cuh"

namespace dcomm {

/// 16, 8, 4, 2 or 1 bytes.
template <int kBytes>
struct CudaUnit {
  gpu::Pack<kBytes / 4> pack;
  DCOMM_DEVICE static CudaUnit load(const std::byte* from) { return {gpu::load_pack<kBytes / 4>(from)}; }
  DCOMM_DEVICE void store(std::byte* to) const { gpu::store_pack(to, pack); }
};
template <class Word>
struct CudaWordUnit {
  Word word;
  DCOMM_DEVICE static CudaWordUnit load(const std::byte* from) {
    return {gpu::load_element(reinterpret_cast<const Word*>(from))};
  }
  DCOMM_DEVICE void store(std::byte* to) const { gpu::store_element(reinterpret_cast<Word*>(to), word); }
};
template <>
struct CudaUnit<4> : CudaWordUnit<uint32_t> {};
template <>
struct CudaUnit<2> : CudaWordUnit<uint16_t> {};
template <>
struct CudaUnit<1> : CudaWordUnit<uint8_t> {};

/// to[0, nbytes) = from[0, nbytes); the two do not overlap. nbytes below 2^32.
template <int kBytes, class Exec>
DCOMM_DEVICE void move_bytes(Exec& exec, std::byte* to, const std::byte* from, size_t nbytes) {
  const bool aligned = ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) & (kBytes - 1)) == 0;
  const uint32_t num_units = aligned ? static_cast<uint32_t>(nbytes / kBytes) : 0;
  exec.template for_each_pack<(kBytes == 16 ? 4 : 2)>(
      num_units, [&](uint32_t i) { return CudaUnit<kBytes>::load(from + size_t{i} * kBytes); },
      [&](uint32_t i, const auto& unit) { unit.store(to + size_t{i} * kBytes); });
  const size_t done = size_t{num_units} * kBytes;
  if constexpr (kBytes > 1) move_bytes<kBytes / 2>(exec, to + done, from + done, nbytes - done);
}

}  // namespace dcomm
