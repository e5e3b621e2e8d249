// The instructions that the CUDA executor needs beyond plain C++: one function each. Floor: exec.
//
// Flags and control words go through ld/st with .sys scope, so that the same kernel serves ranks on one GPU, on
// several, and the host. Data never does: it is moved by plain 16-byte accesses between an acquire and a release,
// and never through the read-only path (ld.global.nc), which is not coherent.
// tests/cc defines the same names for host threads and includes the executor unchanged: hence the guard.
#ifndef DCOMM_CUDA_INTRINSICS
#define DCOMM_CUDA_INTRINSICS

#include <cstddef>
#include <cstdint>

#include "base/macros.h"

#define DCOMM_DEVICE __device__ __forceinline__
/// Before a loop over ranks: most threads run it once or never.
#define DCOMM_ROLLED _Pragma("unroll 1")

namespace dcomm::gpu {

/// Threads of a block. 512 x 128 registers fill a multiprocessor's register file.
inline constexpr int kBlockThreads = 512;
inline constexpr int kWarpLanes = 32;
/// Looks at a flag between two looks at the clock and the abort words (a read over PCIe takes 1-2 us).
inline constexpr uint32_t kPollsPerCheck = 1024;

DCOMM_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DCOMM_DEVICE void block_sync() { __syncthreads(); }
DCOMM_DEVICE bool block_any(bool mine) { return __syncthreads_or(mine ? 1 : 0) != 0; }

/// largest[0] of 32 lanes, each the largest of its group of so many neighbours afterwards; a power of two. All lanes.
DCOMM_DEVICE void spread_largest(uint32_t (&largest)[1], int num_neighbours) {
  for (int distance = 1; distance < num_neighbours; distance *= 2) {
    largest[0] = max(largest[0], __shfl_xor_sync(0xffffffffu, largest[0], distance));
  }
}

// ---- Words shared with other ranks or the host. The memory clobber keeps the compiler from moving data accesses
// ---- across them; the order that the hardware gives is the instruction's.

DCOMM_DEVICE uint64_t load_relaxed(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}
DCOMM_DEVICE uint32_t load_relaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
/// Also invalidates L1, which is why waits poll with load_relaxed and end with one of these.
DCOMM_DEVICE uint64_t load_acquire(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}
DCOMM_DEVICE void store_relaxed(uint64_t* to, uint64_t value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
DCOMM_DEVICE void store_relaxed(uint32_t* to, uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
DCOMM_DEVICE void store_release(uint64_t* to, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
DCOMM_DEVICE void fence_acq_rel() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
/// Sets *word to `value` if it is 0.
DCOMM_DEVICE void set_once(uint64_t* word, uint64_t value) {
  atomicCAS_system(reinterpret_cast<unsigned long long*>(word), 0ull, static_cast<unsigned long long>(value));
}

/// Nanoseconds; the same clock on all multiprocessors.
DCOMM_DEVICE uint64_t now_ns() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}

/// 12 bytes of data and a flag, read and written as one: by the instruction set's word a 16-byte access of type b128
/// is not torn, whatever the link (a vector of four words would be, formally).
struct alignas(16) FlaggedPacket {
  uint32_t words[3];
  uint32_t flag;
};
DCOMM_DEVICE FlaggedPacket load_packet(const FlaggedPacket* from) {
  uint64_t low;
  uint64_t high;
  asm volatile("{.reg .b128 packet;\n\tld.relaxed.sys.global.b128 packet, [%2];\n\tmov.b128 {%0, %1}, packet;}"
               : "=l"(low), "=l"(high)
               : "l"(from)
               : "memory");
  return {{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high)},
          static_cast<uint32_t>(high >> 32)};
}
DCOMM_DEVICE void store_packet(FlaggedPacket* to, const FlaggedPacket& packet) {
  const uint64_t low = (static_cast<uint64_t>(packet.words[1]) << 32) | packet.words[0];
  const uint64_t high = (static_cast<uint64_t>(packet.flag) << 32) | packet.words[2];
  asm volatile(
      "{.reg .b128 packet;\n\tmov.b128 packet, {%1, %2};\n\tst.relaxed.sys.global.b128 [%0], packet;}" ::"l"(to),
      "l"(low), "l"(high)
      : "memory");
}

// ---- Data. ----

/// 8 or 16 bytes.
template <int kWords>
struct Pack {
  uint32_t words[kWords];
};

// The assumption tells the compiler which kind of memory a pointer points to that it found in a table.
template <class Element>
DCOMM_DEVICE Element load_element(const Element* from) {
  __builtin_assume(__isGlobal(from));
  return *from;
}
template <class Element>
DCOMM_DEVICE void store_element(Element* to, Element element) {
  __builtin_assume(__isGlobal(to));
  *to = element;
}
template <int kWords>
DCOMM_DEVICE Pack<kWords> load_pack(const std::byte* from) {
  static_assert(kWords == 2 || kWords == 4);
  if constexpr (kWords == 2) {
    const uint2 raw = load_element(reinterpret_cast<const uint2*>(from));
    return {{raw.x, raw.y}};
  } else {
    const uint4 raw = load_element(reinterpret_cast<const uint4*>(from));
    return {{raw.x, raw.y, raw.z, raw.w}};
  }
}
DCOMM_DEVICE void store_pack(std::byte* to, const Pack<2>& pack) {
  store_element(reinterpret_cast<uint2*>(to), make_uint2(pack.words[0], pack.words[1]));
}
DCOMM_DEVICE void store_pack(std::byte* to, const Pack<4>& pack) {
  store_element(reinterpret_cast<uint4*>(to), make_uint4(pack.words[0], pack.words[1], pack.words[2], pack.words[3]));
}

// ---- Arithmetic. Conversions round to nearest even and keep denormals; what they make of a NaN is left to the
// ---- caller (the instructions give 0x7fff and 0x7fffffff, the library's canonical ones are others).

DCOMM_DEVICE float divide(float x, float by) { return __fdiv_rn(x, by); }
DCOMM_DEVICE uint32_t narrow_f16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
DCOMM_DEVICE uint32_t narrow_bf16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
DCOMM_DEVICE float widen_f16(uint16_t half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

}  // namespace dcomm::gpu

#endif  // DCOMM_CUDA_INTRINSICS
