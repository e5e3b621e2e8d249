// The 8-byte hash by which ranks notice that they disagree. Floor: protocol.
#pragma once

#include <cstdint>

#include "protocol/control.h"

namespace dcomm {

/// Mixes one word in; the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
DCOMM_HOST_DEVICE constexpr uint64_t hash_mix(uint64_t state, uint64_t word) {
  uint64_t z = state + 0x9e3779b97f4a7c15ull + word;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

/// Never 0, which is the hash of "nothing published yet".
constexpr uint64_t fingerprint(const OpRecord& record) {
  const uint64_t kinds = static_cast<uint64_t>(record.collective) | static_cast<uint64_t>(record.algo) << 8 |
                         static_cast<uint64_t>(record.dtype) << 16 | static_cast<uint64_t>(record.wire) << 24 |
                         static_cast<uint64_t>(record.op) << 32;
  uint64_t hash = hash_mix(record.seq, record.count);
  hash = hash_mix(hash, kinds);
  hash = hash_mix(hash, static_cast<uint64_t>(static_cast<uint32_t>(record.root)));
  if (record.algo == Algo::kDirect) {
    hash = hash_mix(hash, static_cast<uint64_t>(record.in_region) << 32 | record.out_region);
    // A lent input may lie elsewhere in the region on every rank.
    if (!lends_input_only(record.collective)) hash = hash_mix(hash_mix(hash, record.in_offset), record.out_offset);
  }
  return hash == 0 ? 1 : hash;
}

}  // namespace dcomm
