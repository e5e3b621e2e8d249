// Checks of the tile functions' choice, conversions and copies: every table that this CPU runs, bit by bit,
// against base/half.h.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernel_types.h"

namespace dcomm::kernel_checks {
namespace {

// ---- The tables. ----

CHECK_CASE(kernel_table_selection) {
  const KernelTable* best = select_kernel_table(nullptr);
  EXPECT(best != nullptr);
  EXPECT(select_kernel_table("") == best);
  EXPECT(select_kernel_table("scalar") == kernel_table_scalar());
  EXPECT(available_tables().back() == best);
  try {
    select_kernel_table("sse9");
    EXPECT_MSG(false, "an unknown name was accepted");
  } catch (const Error& error) {
    EXPECT(error.code() == ErrorCode::kInvalidArgument);
    const std::string text = error.what();
    for (const char* part : {"sse9", "unknown", "scalar, avx2, avx512, neon", "of which this CPU runs"}) {
      EXPECT_MSG(text.find(part) != std::string::npos, text + ": does not say " + part);
    }
  }
  for (const KernelTable* table : available_tables()) EXPECT(select_kernel_table(table->isa) == table);
}

CHECK_CASE(kernel_table_find) {
  for (const KernelTable* table : available_tables()) {
    for (int i = 0; i < kNumDTypes * kNumWireDTypes * kNumReduceOps; ++i) {
      const auto dtype = static_cast<DType>(i % kNumDTypes), wire = static_cast<DType>(i / kNumDTypes % kNumWireDTypes);
      const auto op = static_cast<ReduceOp>(i / kNumDTypes / kNumWireDTypes);
      const bool is_sum = op == ReduceOp::kSum || op == ReduceOp::kAvg || op == ReduceOp::kPremulSum;
      const bool is_pair =
          dtype == wire || (dtype == DType::kF32 && (is_half(wire) || (is_block_scaled(wire) && is_sum)));
      const TileFunctions* found = table->find(dtype, wire, op);
      EXPECT_EQ(found != nullptr, is_pair && is_defined(op, dtype) && !is_complex(dtype));
      if (found == nullptr) continue;
      // What the Scales do needs no functions of its own.
      if (op == ReduceOp::kAvg || op == ReduceOp::kPremulSum) EXPECT(found == table->find(dtype, wire, ReduceOp::kSum));
    }
  }
}

// ---- Conversions. ----

template <class Half>
void check_encode(const KernelTable& table, const std::vector<float>& values, Scale scale) {
  std::vector<uint16_t> wire(values.size());
  table.find(DType::kF32, Half::kDType, ReduceOp::kSum)->encode(wire.data(), values.data(), values.size(), scale);
  for (size_t i = 0; i < values.size(); ++i) {
    if (wire[i] == Half::narrow(scaled(values[i], scale))) continue;
    EXPECT_EQ(std::string(table.isa) + " " + dtype_name(Half::kDType), "half.h");
    EXPECT_EQ(f32_bits(values[i]), i);
  }
}

template <class Half>
void check_all_halves(const KernelTable& table) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> wide(halves.size());
  table.find(DType::kF32, Half::kDType, ReduceOp::kSum)->decode(wide.data(), halves.data(), halves.size());
  for (size_t i = 0; i < halves.size(); ++i) {
    EXPECT_EQ(f32_bits(wide[i]), f32_bits(Half::widen(halves[i])));
  }
  std::vector<uint16_t> back(halves.size());
  table.find(DType::kF32, Half::kDType, ReduceOp::kSum)->encode(back.data(), wide.data(), wide.size(), {});
  for (size_t i = 0; i < halves.size(); ++i) {
    EXPECT_EQ(back[i], std::isnan(wide[i]) ? Half::narrow(wide[i]) : halves[i]);
  }
}

/// The midpoint of each pair of neighbouring halves, of either sign, and the floats beside it.
template <class Half>
std::vector<float> midpoints(uint16_t infinity) {
  std::vector<float> values;
  for (uint16_t half = 0; half < infinity; ++half) {
    const double low = Half::widen(half);
    const uint16_t next = static_cast<uint16_t>(half + 1);
    // Beyond the largest half one more step of the same width: there rounding up gives inf.
    const double high = next < infinity ? Half::widen(next) : 2 * low - Half::widen(static_cast<uint16_t>(half - 1));
    const uint32_t middle = f32_bits(static_cast<float>((low + high) / 2));
    for (uint32_t bits : {middle - 1, middle, middle + 1}) {
      values.push_back(f32_from_bits(bits));
      values.push_back(f32_from_bits(bits | 0x80000000u));
    }
  }
  return values;
}

CHECK_CASE(kernel_conversions_all_halves) {
  for (const KernelTable* table : available_tables()) {
    check_all_halves<F16>(*table);
    check_all_halves<BF16>(*table);
  }
}

CHECK_CASE(kernel_conversions_midpoints) {
  const std::vector<float> f16 = midpoints<F16>(0x7c00);
  const std::vector<float> bf16 = midpoints<BF16>(0x7f80);
  for (const KernelTable* table : available_tables()) {
    check_encode<F16>(*table, f16, {});
    check_encode<BF16>(*table, bf16, {});
  }
}

CHECK_CASE(kernel_conversions_random) {
  Random random(1);
  std::vector<float> values(1000000 / kThinning);
  for (float& value : values) value = f32_from_bits(random_element<F32>(random, true));
  for (const KernelTable* table : available_tables()) {
    for (const Scale scale : {Scale{}, {2.0}, {3.0}, {8.0}, {0.1, true}, {1024.0, true}}) {
      check_encode<F16>(*table, values, scale);
      check_encode<BF16>(*table, values, scale);
    }
  }
}

template <class User, class Wire>
void check_encode_decode(const TileFunctions& functions, Random& random) {
  constexpr size_t kUser = sizeof(typename User::Bits), kWire = sizeof(typename Wire::Bits);
  const Fenced user_memory(kMaxCount * kUser), wire_memory(kMaxCount * kWire);
  std::vector<char> buffer(kMaxCount * 8 + 2 * kMargin);
  for (size_t count : kCounts) {
    for (const Scale scale : {Scale{}, {2.0}, {3.0}, {0.1, true}}) {
      for (size_t shift : {0, 1, 3, 64}) {
        // The source ends at the fence, the target (at any alignment) has margins.
        char* const user = user_memory.last(count * kUser);
        for (size_t i = 0; i < count; ++i) set<User>(user, i, random_element<User>(random, i % 3 == 0));
        char* const target = buffer.data() + kMargin / 2 + shift % 64;
        std::memset(buffer.data(), kUntouched, buffer.size());
        functions.encode(target, user, count, scale);
        for (size_t i = 0; i < count; ++i) {
          // No conversion: the bits as they are.
          const bool copied = User::kDType == Wire::kDType && (!is_floating(User::kDType) || scale.number == 1.0);
          const auto value = scaled(User::widen(get<User>(user, i)), scale);
          const auto expected = copied ? static_cast<typename Wire::Bits>(get<User>(user, i))
                                       : Wire::narrow(static_cast<typename Wire::Acc>(value));
          EXPECT_EQ(get<Wire>(target, i), expected);
        }
        EXPECT(is_untouched(target + count * kWire, kMargin / 4));
        EXPECT(is_untouched(buffer.data(), static_cast<size_t>(target - buffer.data())));

        char* const wire = wire_memory.last(count * kWire);
        for (size_t i = 0; i < count; ++i) set<Wire>(wire, i, random_element<Wire>(random, i % 3 == 0));
        std::memset(buffer.data(), kUntouched, buffer.size());
        functions.decode(target, wire, count);
        for (size_t i = 0; i < count; ++i) {
          const auto bits = get<Wire>(wire, i);
          const auto expected =
              User::kDType == Wire::kDType ? static_cast<typename User::Bits>(bits) : User::narrow(Wire::widen(bits));
          EXPECT_EQ(get<User>(target, i), expected);
        }
        EXPECT(is_untouched(target + count * kUser, kMargin / 4));
        EXPECT(is_untouched(buffer.data(), static_cast<size_t>(target - buffer.data())));
      }
    }
  }
}

CHECK_CASE(kernel_encode_decode) {
  Random random(2);
  for (const KernelTable* table : available_tables()) {
    for_each_pair([&]<class User, class Wire>() {
      for_each_op<User>(
          [&](ReduceOp op) { check_encode_decode<User, Wire>(*table->find(User::kDType, Wire::kDType, op), random); });
    });
  }
}

}  // namespace
}  // namespace dcomm::kernel_checks
