// Host stand-ins for csrc/exec/cuda_intrinsics.cuh: the CUDA executor and its kernels then run unchanged on threads,
// a block being a few of them. What this cannot show (L1, real scopes, occupancy) is left to tests/gpu.
#pragma once

// The device code fills registers in one unrolled loop and reads them in another. nvcc sees that each is set first (no
// warning there); gcc, which does not unroll all of them, does not. The bitwise comparisons would see a real mistake.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define DCOMM_CUDA_INTRINSICS  // instead of the real ones
#define DCOMM_DEVICE inline
#define DCOMM_ROLLED

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>

#include "base/half.h"
#include "base/macros.h"
#include "base/mutation.h"

namespace dcomm::gpu {

inline constexpr int kBlockThreads = 4;
inline constexpr int kWarpLanes = 4;  // which hold 8 quads each of what 32 hold
inline constexpr uint32_t kPollsPerCheck = 8;

/// One emulated block; each of its threads sets `current_block` and `current_thread`.
struct Block {
  std::barrier<> barrier{kBlockThreads};
  std::atomic<int> votes[2] = {0, 0};
  uint32_t quads[32] = {};  // what the lanes of a warp tell each other
};
inline thread_local Block* current_block = nullptr;
inline thread_local int current_thread = 0;
inline thread_local unsigned current_vote = 0;

inline int thread_index() { return current_thread; }
inline void block_sync() { current_block->barrier.arrive_and_wait(); }
inline bool block_any(bool mine) {
  std::atomic<int>& votes = current_block->votes[current_vote++ % 2];
  if (mine) votes.fetch_add(1);
  block_sync();
  const bool any = votes.load() != 0;
  block_sync();
  if (current_thread == 0) votes.store(0);
  return any;
}

template <int kQuads>
void spread_largest(uint32_t (&largest)[kQuads], int num_neighbours) {
  static_assert(kQuads * kWarpLanes == 32 && kWarpLanes == kBlockThreads);
  uint32_t* const quads = current_block->quads;
  for (int k = 0; k < kQuads; ++k) quads[current_thread + k * kWarpLanes] = largest[k];
  block_sync();
  for (int k = 0; k < kQuads; ++k) {
    const int first = (current_thread + k * kWarpLanes) / num_neighbours * num_neighbours;
    for (int i = 0; i < num_neighbours; ++i) largest[k] = std::max(largest[k], quads[first + i]);
  }
  block_sync();
}

template <class Word>
Word load_relaxed(const Word* from) {
  const Word value = __atomic_load_n(from, __ATOMIC_RELAXED);
  std::this_thread::yield();  // every relaxed load is a poll
  return value;
}
/// What was polled with relaxed loads counts once it was loaded like this.
inline uint64_t load_acquire(const uint64_t* from) {
  if (mutated(Mutation::kRelaxedArrive)) return __atomic_load_n(from, __ATOMIC_RELAXED);
  return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
// ThreadSanitizer does not know fences: the stores after one are release stores here.
template <class Word>
void store_relaxed(Word* to, Word value) {
  if (mutated(Mutation::kRelaxedPublish)) return __atomic_store_n(to, value, __ATOMIC_RELAXED);
  __atomic_store_n(to, value, __ATOMIC_RELEASE);
}
inline void store_release(uint64_t* to, uint64_t value) {
  if (mutated(Mutation::kRelaxedPublish)) return __atomic_store_n(to, value, __ATOMIC_RELAXED);
  __atomic_store_n(to, value, __ATOMIC_RELEASE);
}
inline void fence_acq_rel() {}
inline void set_once(uint64_t* word, uint64_t value) {
  uint64_t expected = 0;
  __atomic_compare_exchange_n(word, &expected, value, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
inline uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

/// One 16-byte access on the GPU. Here the half with the flag is read first and written last, with acquire and release:
/// the rest was written before it, and is written again only when the protocol says that it has been read.
struct alignas(16) FlaggedPacket {
  uint32_t words[3];
  uint32_t flag;
};
inline FlaggedPacket load_packet(const FlaggedPacket* from) {
  const auto* const halves = reinterpret_cast<const uint64_t*>(from);
  const uint64_t high = __atomic_load_n(halves + 1, __ATOMIC_ACQUIRE);
  const uint64_t low = __atomic_load_n(halves, __ATOMIC_RELAXED);
  std::this_thread::yield();  // a poll
  return {{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high)},
          static_cast<uint32_t>(high >> 32)};
}
inline void store_packet(FlaggedPacket* to, const FlaggedPacket& packet) {
  auto* const halves = reinterpret_cast<uint64_t*>(to);
  __atomic_store_n(halves, (static_cast<uint64_t>(packet.words[1]) << 32) | packet.words[0], __ATOMIC_RELAXED);
  __atomic_store_n(halves + 1, (static_cast<uint64_t>(packet.flag) << 32) | packet.words[2], __ATOMIC_RELEASE);
}

template <int kWords>
struct Pack {
  uint32_t words[kWords];
};

template <class Element>
Element load_element(const Element* from) {
  return *from;
}
template <class Element>
void store_element(Element* to, Element element) {
  *to = element;
}
/// A misaligned pack would be an error on the GPU; here it makes the result visibly wrong.
inline bool is_aligned(const void* pointer, int num_words) {
  return reinterpret_cast<uintptr_t>(pointer) % (static_cast<unsigned>(num_words) * 4) == 0;
}
template <int kWords>
Pack<kWords> load_pack(const std::byte* from) {
  Pack<kWords> pack{};
  if (is_aligned(from, kWords)) std::memcpy(pack.words, from, sizeof(pack));
  return pack;
}
template <int kWords>
void store_pack(std::byte* to, const Pack<kWords>& pack) {
  if (is_aligned(to, kWords)) std::memcpy(to, pack.words, sizeof(pack));
}

// The instructions' own NaNs, which differ from the library's.
inline float divide(float x, float by) { return x / by; }
inline uint32_t narrow_f16x2(float low, float high) {
  const uint32_t a = low != low ? 0x7fffu : f16_from_f32(low);
  const uint32_t b = high != high ? 0x7fffu : f16_from_f32(high);
  return a | (b << 16);
}
inline uint32_t narrow_bf16x2(float low, float high) {
  const uint32_t a = low != low ? 0x7fffu : bf16_from_f32(low);
  const uint32_t b = high != high ? 0x7fffu : bf16_from_f32(high);
  return a | (b << 16);
}
inline float widen_f16(uint16_t half) {
  const float value = f16_to_f32(half);
  return value != value ? f32_from_bits(0x7fffffffu) : value;
}

}  // namespace dcomm::gpu
