// What the checks of the tile functions share: fenced memory, the element types as a naive reference sees
// them, and numbers that go wrong first.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "check.h"
#include "exec/host_kernels.h"

namespace dcomm::kernel_checks {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr size_t kThinning = 7;  // a sanitizer run tries every 7th combination (odd: of every kind)
#else
inline constexpr size_t kThinning = 1;
#endif

inline std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
  for (const char* isa : {"scalar", "avx2", "avx512"}) {
    try {
      tables.push_back(select_kernel_table(isa));
    } catch (const Error&) {
    }
  }
  return tables;
}

/// num_bytes that end where an unreadable page begins: reading or writing one byte more is a crash.
class Fenced {
 public:
  explicit Fenced(size_t num_bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (num_bytes + page - 1) / page * page + page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT(base_ != MAP_FAILED);
    end_ = base_ + mapped_ - page;
    EXPECT_EQ(mprotect(end_, page, PROT_NONE), 0);
  }
  ~Fenced() { munmap(base_, mapped_); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  char* last(size_t num_bytes) const { return end_ - num_bytes; }

 private:
  size_t mapped_ = 0;
  char* base_ = nullptr;
  char* end_ = nullptr;
};

// ---- The element types, as the reference sees them. ----

template <DType kType, class BitsT, class AccT>
struct Plain {
  using Bits = BitsT;
  using Acc = AccT;
  static constexpr DType kDType = kType;
  static Acc widen(Bits bits) { return std::bit_cast<Acc>(bits); }
  static Bits narrow(Acc value) { return std::bit_cast<Bits>(value); }
};
using F32 = Plain<DType::kF32, uint32_t, float>;
using F64 = Plain<DType::kF64, uint64_t, double>;
using I32 = Plain<DType::kI32, uint32_t, uint32_t>;
using I64 = Plain<DType::kI64, uint64_t, uint64_t>;

struct F16 {
  using Bits = uint16_t;
  using Acc = float;
  static constexpr DType kDType = DType::kF16;
  static Acc widen(Bits bits) { return f16_to_f32(bits); }
  static Bits narrow(Acc value) { return f16_from_f32(value); }
};

struct BF16 {
  using Bits = uint16_t;
  using Acc = float;
  static constexpr DType kDType = DType::kBF16;
  static Acc widen(Bits bits) { return bf16_to_f32(bits); }
  static Bits narrow(Acc value) { return bf16_from_f32(value); }
};

template <class Body>
void for_each_pair(const Body& body) {
  body.template operator()<F32, F32>();
  body.template operator()<F32, F16>();
  body.template operator()<F32, BF16>();
  body.template operator()<F16, F16>();
  body.template operator()<BF16, BF16>();
  body.template operator()<F64, F64>();
  body.template operator()<I32, I32>();
  body.template operator()<I64, I64>();
}

template <class Type>
typename Type::Bits get(const void* from, size_t i) {
  typename Type::Bits bits;
  std::memcpy(&bits, static_cast<const char*>(from) + i * sizeof(bits), sizeof(bits));
  return bits;
}

template <class Type>
void set(void* to, size_t i, typename Type::Bits bits) {
  std::memcpy(static_cast<char*>(to) + i * sizeof(bits), &bits, sizeof(bits));
}

template <class Acc>
Acc divided(Acc value, double divisor) {
  if constexpr (std::is_floating_point_v<Acc>) {
    return divisor == 1.0 ? value : value / static_cast<Acc>(divisor);
  } else {
    return value;
  }
}

template <class Acc>
bool is_nan(Acc value) {
  if constexpr (std::is_floating_point_v<Acc>) return std::isnan(value);
  return false;
}

using Random = std::mt19937_64;

/// Mostly ordinary numbers; with `special`, one of those that go wrong first.
template <class Type>
typename Type::Bits random_element(Random& random, bool special) {
  const uint64_t bits = random();
  using Acc = typename Type::Acc;
  if constexpr (!std::is_floating_point_v<Acc>) {
    return static_cast<typename Type::Bits>(bits);
  } else {
    if (special && bits % 2 == 0) return static_cast<typename Type::Bits>(bits >> 8);  // any bits at all
    if (special) {
      using Limits = std::numeric_limits<Acc>;
      const Acc values[] = {Acc(0),         -Acc(0),       Limits::infinity(),   -Limits::infinity(), Limits::max(),
                            -Limits::max(), Limits::min(), Limits::denorm_min(), Acc(65504),          Acc(65520),
                            Acc(0x1p-24),   Acc(-0x1p-25), Limits::quiet_NaN()};
      return Type::narrow(values[(bits >> 8) % std::size(values)]);
    }
    return Type::narrow(static_cast<Acc>((static_cast<double>(bits >> 11) * 0x1p-52 - 1.0) * 100.0));
  }
}

inline constexpr size_t kCounts[] = {0, 1, 7, 8, 15, 16, 17, 63, 64, 65, 1000};
inline constexpr size_t kMaxCount = 1000;
inline constexpr size_t kMargin = 128;  // bytes before and after, that must stay as they are
inline constexpr char kUntouched = 0x5b;

inline bool is_untouched(const char* from, size_t num_bytes) {
  for (size_t i = 0; i < num_bytes; ++i) {
    if (from[i] != kUntouched) return false;
  }
  return true;
}

}  // namespace dcomm::kernel_checks
