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
#include "reference.h"

namespace dcomm::kernel_checks {

using checks::Truth;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr size_t kThinning = 7;  // a sanitizer run tries every 7th combination (odd: of every kind)
#else
inline constexpr size_t kThinning = 1;
#endif

inline std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
  for (const char* isa : {"scalar", "avx2", "avx512", "neon"}) {
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
using I8 = Plain<DType::kI8, uint8_t, int8_t>;
using U8 = Plain<DType::kU8, uint8_t, uint8_t>;
using Bool = Plain<DType::kBool, uint8_t, Truth>;
using I32 = Plain<DType::kI32, uint32_t, int32_t>;
using I64 = Plain<DType::kI64, uint64_t, int64_t>;

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
  body.template operator()<I8, I8>();
  body.template operator()<U8, U8>();
  body.template operator()<Bool, Bool>();
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

/// body(op) for every operation that the type has functions of its own for: not avg and premul_sum, which use those
/// of sum (kernel_table_find).
template <class Type, class Body>
void for_each_op(const Body& body) {
  for (int op = 0; op < kNumReduceOps; ++op) {
    const auto what = static_cast<ReduceOp>(op);
    if (what == ReduceOp::kAvg || what == ReduceOp::kPremulSum) continue;
    if (is_defined(what, Type::kDType)) body(what);
  }
}

template <class Acc>
Acc scaled(Acc value, Scale by) {
  if constexpr (std::is_floating_point_v<Acc>) {
    if (by.number == 1.0) return value;
    return by.multiply ? value * static_cast<Acc>(by.number) : value / static_cast<Acc>(by.number);
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

/// The numbers that go wrong first; of a type that has few of them, all that matter.
template <class Type>
std::vector<typename Type::Bits> special_elements() {
  using Acc = typename Type::Acc;
  if constexpr (std::is_same_v<Acc, Truth>) {
    return {0, 1};
  } else if constexpr (std::is_floating_point_v<Acc>) {
    using Limits = std::numeric_limits<Acc>;
    std::vector<typename Type::Bits> bits;
    for (const Acc value : {Acc(0), -Acc(0), Limits::infinity(), -Limits::infinity(), Limits::max(), -Limits::max(),
                            Limits::min(), Limits::denorm_min(), -Limits::denorm_min(), Acc(65504), Acc(65520),
                            Acc(0x1p-24), Acc(-0x1p-25), Acc(1), Limits::quiet_NaN()}) {
      bits.push_back(Type::narrow(value));
    }
    // Every kind of NaN: quiet or signalling, of either sign. The least of them is infinity's bits + 1.
    const auto infinity = Type::narrow(Limits::infinity());
    const auto sign = static_cast<decltype(infinity)>(Type::narrow(-Acc(0)));
    const auto quiet = Type::narrow(Limits::quiet_NaN());
    for (const auto nan : {infinity + 1u, infinity + 2u, quiet + 5u}) {
      bits.push_back(static_cast<typename Type::Bits>(nan));
      bits.push_back(static_cast<typename Type::Bits>(nan | sign));
    }
    return bits;
  } else {
    using Limits = std::numeric_limits<Acc>;
    std::vector<typename Type::Bits> bits;
    for (const Acc value : {Acc(0), Acc(1), Acc(-1), Limits::max(), Limits::min(), Acc(Limits::max() - 1)}) {
      bits.push_back(Type::narrow(value));
    }
    return bits;
  }
}

/// Mostly ordinary numbers; with `special`, one of those that go wrong first.
template <class Type>
typename Type::Bits random_element(Random& random, bool special) {
  static const auto specials = special_elements<Type>();
  using Acc = typename Type::Acc;
  const uint64_t bits = random();
  const bool any_bits = special ? bits % 2 == 0 : !std::is_floating_point_v<Acc>;
  if (std::is_same_v<Acc, Truth>) return static_cast<typename Type::Bits>(bits >> 8 & 1);
  if (any_bits) return static_cast<typename Type::Bits>(bits >> 1);
  if (special) return specials[(bits >> 8) % specials.size()];
  if constexpr (std::is_floating_point_v<Acc>) {
    return Type::narrow(static_cast<Acc>((static_cast<double>(bits >> 11) * 0x1p-52 - 1.0) * 100.0));
  }
  return 0;  // not reached: ordinary integers are any bits
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
