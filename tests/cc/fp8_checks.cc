// Checks of the fp8 wires' conversions, tiles and slots: every table that this CPU runs, bit by bit, against
// base/fp8.h, and that against fp8_reference.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/fp8.h"
#include "fp8_reference.h"
#include "kernel_types.h"
#include "schedule/block_layout.h"

namespace dcomm::kernel_checks {
namespace {

constexpr DType kWires[] = {DType::kF8Block32, DType::kF8Block128};

const TileFunctions& functions_of(const KernelTable& table, DType wire) {
  return *table.find(DType::kF32, wire, ReduceOp::kSum);
}

// ---- Conversions. ----

/// Every code's value, the midpoint to the next one and what lies beside both, of either sign, up to 448.
std::vector<float> telling_numbers() {
  std::vector<float> numbers;
  for (int code = 0; code < 127; ++code) {
    const double value = checks::e4m3_value(code);
    const double middle = code < 126 ? (value + checks::e4m3_value(code + 1)) / 2 : value;
    for (const double center : {value, middle}) {
      const auto exact = static_cast<float>(center);
      for (const float number : {std::nextafter(exact, 0.0f), exact, std::nextafter(exact, 448.0f)}) {
        numbers.push_back(number);
        numbers.push_back(-number);
      }
    }
  }
  for (const float tiny : {0x1p-11f, 0x1p-30f, 0x1p-126f, 0x1p-149f}) numbers.insert(numbers.end(), {tiny, -tiny});
  return numbers;
}

CHECK_CASE(fp8_every_code) {
  for (int code = 0; code < 127; ++code) {
    for (const int sign : {0, 0x80}) {
      const float value = e4m3_to_f32(static_cast<uint8_t>(sign | code));
      EXPECT_EQ(std::fabs(static_cast<double>(value)), checks::e4m3_value(code));
      EXPECT_EQ(std::signbit(value), sign != 0);
      EXPECT_EQ(int{e4m3_from_f32(value)}, sign | code);
    }
  }
  EXPECT(std::isnan(e4m3_to_f32(0x7f)) && std::isnan(e4m3_to_f32(0xff)));
}

CHECK_CASE(fp8_every_midpoint) {
  for (const float number : telling_numbers()) {
    const int sign = std::signbit(number) ? 0x80 : 0;
    EXPECT_EQ(int{e4m3_from_f32(number)}, sign | checks::nearest_e4m3(std::fabs(static_cast<double>(number))));
  }
  for (const float large : {449.0f, 464.0f, 465.0f, 1e6f, HUGE_VALF}) {
    EXPECT_EQ(int{e4m3_from_f32(large)}, 0x7e);
    EXPECT_EQ(int{e4m3_from_f32(-large)}, 0xfe);
  }
  EXPECT_EQ(int{e4m3_from_f32(NAN)} & 0x7f, 0x7f);
}

// At each power of two, and where 448 of it ends.
CHECK_CASE(fp8_scales) {
  for (int exponent = -149; exponent < 128; ++exponent) {
    for (const double significand : {1.0, 1.5, 1.75, 1.75 + 0x1p-23, 2 - 0x1p-23}) {
      const float largest = static_cast<float>(std::ldexp(significand, exponent));
      if (largest == 0.0f || !std::isfinite(largest)) continue;
      const uint8_t code = fp8_scale_code(f32_bits(largest));
      EXPECT_EQ(int{code} - 127, checks::fp8_exponent(largest));
      EXPECT_EQ(fp8_scale(code) * fp8_inverse_scale(code), 1.0f);
      EXPECT(largest * fp8_inverse_scale(code) <= 448.0f);
    }
  }
  EXPECT_EQ(int{fp8_scale_code(0)}, int{kLeastScale});
  for (const uint32_t bits : {kF32Infinity, kF32Infinity + 1, kF32QuietNan}) {
    EXPECT_EQ(int{fp8_scale_code(bits)}, int{kScaleNan});
  }
  EXPECT(std::isnan(fp8_scale(kScaleNan)));
}

// ---- Tiles. ----

/// What a slot holds of `values`, by base/fp8.h alone. What no block takes stays as it is.
void encode_plainly(std::byte* slot, const std::vector<float>& values, DType wire, Scale scale) {
  const BlockLayout layout{block_count_of(wire)};
  for (size_t block = 0; block < layout.num_blocks(values.size()); ++block) {
    const size_t begin = block * layout.block_count;
    uint32_t largest = 0;
    std::vector<float> own(layout.block_count);
    for (size_t i = 0; i < own.size() && begin + i < values.size(); ++i) {
      own[i] = scaled(values[begin + i], scale);
      largest = std::max(largest, fp8_magnitude(f32_bits(own[i])));
    }
    const uint8_t code = fp8_scale_code(largest);
    slot[layout.scale_offset(block)] = std::byte{code};
    for (size_t i = 0; i < own.size(); ++i) {
      const uint8_t element = code == kScaleNan ? 0 : e4m3_from_f32(own[i] * fp8_inverse_scale(code));
      slot[layout.element_offset(begin + i)] = std::byte{element};
    }
  }
}

std::vector<float> decode_plainly(const std::byte* slot, size_t count, DType wire) {
  const BlockLayout layout{block_count_of(wire)};
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    const auto code = static_cast<uint8_t>(slot[layout.element_offset(i)]);
    values[i] = fp8_value(code, fp8_scale(static_cast<uint8_t>(slot[layout.scale_offset(i / layout.block_count)])));
  }
  return values;
}

size_t slot_bytes_of(size_t count, DType wire) {
  const BlockLayout layout{block_count_of(wire)};
  return count == 0 ? 0 : layout.element_offset(layout.num_blocks(count) * layout.block_count - 1) + 1;
}

/// Blocks of ordinary numbers, some with one that goes wrong first, of any size from block to block.
std::vector<float> random_values(Random& random, size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    const bool special = random() % 500 == 0;
    const int exponent = static_cast<int>(i / 32 * 7919 % 260) - 140;
    const float unit = static_cast<float>(static_cast<double>(random() >> 11) * 0x1p-52 - 1.0);
    values[i] = special ? f32_from_bits(random_element<F32>(random, true)) : std::ldexp(unit, exponent);
  }
  return values;
}

void expect_same(const std::vector<float>& a, const float* b, const std::string& what) {
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_MSG(f32_bits(a[i]) == f32_bits(b[i]), what + ": element " + std::to_string(i) + " of " +
                                                     std::to_string(a.size()) + ": " + std::to_string(a[i]) + " vs " +
                                                     std::to_string(b[i]));
  }
}

constexpr size_t kBlockCounts[] = {0, 1, 31, 32, 33, 127, 128, 129, 511, 512, 513, 1024, 2047, 2049, 4096, 5000};
constexpr size_t kMostCount = 5000;

// A block whose largest number is 448 has scale 1: then its numbers are rounded as they are.
CHECK_CASE(fp8_tables_round_every_midpoint) {
  const std::vector<float> numbers = telling_numbers();
  for (const KernelTable* table : available_tables()) {
    for (const DType wire : kWires) {
      const size_t block = block_count_of(wire);
      std::vector<float> values;
      for (const float number : numbers) {
        if (values.size() % block == 0) values.push_back(448.0f);
        values.push_back(number);
      }
      std::vector<std::byte> slot(slot_bytes_of(values.size(), wire)), expected(slot.size());
      functions_of(*table, wire).encode(slot.data(), values.data(), values.size(), {});
      encode_plainly(expected.data(), values, wire, {});
      EXPECT_MSG(slot == expected, std::string(table->isa) + " " + dtype_name(wire));
      std::vector<float> back(values.size());
      functions_of(*table, wire).decode(back.data(), slot.data(), values.size());
      checks::round_fp8(values, wire);
      expect_same(values, back.data(), table->isa);
    }
  }
}

CHECK_CASE(fp8_tables_encode_decode) {
  Random random(71);
  const Fenced user_memory(kMostCount * sizeof(float));
  const Fenced wire_memory(slot_bytes_of(kMostCount, DType::kF8Block32) + kMostCount);
  for (const KernelTable* table : available_tables()) {
    for (const DType wire : kWires) {
      for (const size_t count : kBlockCounts) {
        for (const Scale scale : {Scale{}, Scale{2.0}, Scale{3.0}, Scale{0.1, true}}) {
          const std::vector<float> values = random_values(random, count);
          float* const user = reinterpret_cast<float*>(user_memory.last(count * sizeof(float)));
          std::byte* const slot = reinterpret_cast<std::byte*>(wire_memory.last(slot_bytes_of(count, wire)));
          std::vector<std::byte> expected(slot_bytes_of(count, wire), std::byte{kUntouched});
          if (count != 0) std::memcpy(user, values.data(), count * sizeof(float));
          std::memset(slot, kUntouched, expected.size());
          functions_of(*table, wire).encode(slot, user, count, scale);
          encode_plainly(expected.data(), values, wire, scale);
          EXPECT_MSG(std::equal(expected.begin(), expected.end(), slot),
                     std::string(table->isa) + " " + dtype_name(wire) + " count " + std::to_string(count));
          functions_of(*table, wire).decode(user, slot, count);
          expect_same(decode_plainly(slot, count, wire), user, table->isa);
        }
      }
    }
  }
}

/// All of `n` terms but the own one come from slots; outputs are inputs, as in two_shot.
void check_reduce(const KernelTable& table, DType wire, int n, int own, size_t count, Scale pre, Random& random) {
  const size_t slot_bytes = slot_bytes_of(count, wire);
  std::vector<std::vector<std::byte>> slots(static_cast<size_t>(n), std::vector<std::byte>(slot_bytes));
  std::vector<float> mine;
  std::vector<std::vector<float>> terms;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  for (int rank = 0; rank < n; ++rank) {
    const std::vector<float> values = random_values(random, count);
    auto& slot = slots[static_cast<size_t>(rank)];
    encode_plainly(slot.data(), values, wire, rank == own ? pre : Scale{});
    terms.push_back(decode_plainly(slot.data(), count, wire));
    inputs.push_back(rank == own ? nullptr : slot.data());
    if (rank == own) mine = values;
    if (rank != own) outputs.push_back(slot.data());
  }
  std::vector<float> sums(count), column(static_cast<size_t>(n)), out(count);
  for (size_t i = 0; i < count; ++i) {
    for (size_t rank = 0; rank < column.size(); ++rank) column[rank] = terms[rank][i];
    sums[i] = checks::canonical_tree(ReduceOp::kSum, column, 0, column.size());
  }
  std::vector<std::byte> expected(slot_bytes);
  encode_plainly(expected.data(), sums, wire, {});
  ReduceTile tile;
  tile.inputs = inputs.data();
  tile.num_inputs = n;
  tile.own_index = own;
  tile.own = mine.data();
  tile.out = out.data();
  tile.wire_outputs = outputs.data();
  tile.num_wire_outputs = n - 1;
  tile.count = count;
  tile.pre = pre;
  tile.round_own = true;
  tile.is_final = true;
  functions_of(table, wire).reduce(tile);
  const std::string what = std::string(table.isa) + " " + dtype_name(wire) + " n=" + std::to_string(n);
  for (int rank = 0; rank < n; ++rank) {
    if (rank != own) EXPECT_MSG(slots[static_cast<size_t>(rank)] == expected, what + ": a slot");
  }
  expect_same(decode_plainly(expected.data(), count, wire), out.data(), what);
}

CHECK_CASE(fp8_tables_reduce) {
  Random random(72);
  for (const KernelTable* table : available_tables()) {
    for (const DType wire : kWires) {
      for (int n = 1; n <= 9; ++n) {
        const size_t counts[] = {1, 33, 512, static_cast<size_t>(600 + 700 * n) / kThinning};
        for (const size_t count : counts) {
          const int own = static_cast<int>(count) % n;
          check_reduce(*table, wire, n, own, count, n % 2 == 0 ? Scale{static_cast<double>(n)} : Scale{}, random);
        }
      }
    }
  }
}

// Rounding what has been rounded changes nothing, but for NaNs.
CHECK_CASE(fp8_rounds_once) {
  Random random(73);
  for (const DType wire : kWires) {
    std::vector<float> values = random_values(random, 4096);
    checks::round_fp8(values, wire);
    std::vector<float> again = values;
    checks::round_fp8(again, wire);
    for (size_t i = 0; i < values.size(); ++i) {
      if (!std::isinf(values[i]) && !std::isnan(again[i])) EXPECT_EQ(f32_bits(again[i]), f32_bits(values[i]));
    }
  }
}

// ---- Slots. ----

CHECK_CASE(fp8_slots_hold_what_they_should) {
  for (const DType wire : kWires) {
    const BlockLayout layout{block_count_of(wire)};
    std::vector<int> taken(4 * layout.group_bytes());
    for (size_t block = 0; block < 4 * kGroupBlocks; ++block) {
      ++taken.at(layout.scale_offset(block));
      for (size_t i = 0; i < layout.block_count; ++i) ++taken.at(layout.element_offset(block * layout.block_count + i));
    }
    EXPECT(std::all_of(taken.begin(), taken.end(), [](int times) { return times == 1; }));
    for (size_t bytes = 0; bytes < 3 * layout.group_bytes(); ++bytes) {
      const size_t count = layout.capacity(bytes);
      EXPECT_EQ(count % layout.block_count, size_t{0});
      EXPECT_EQ(slot_capacity(wire, bytes), count);
      if (count != 0)
        EXPECT(layout.element_offset(count - 1) < bytes && layout.scale_offset(layout.num_blocks(count) - 1) < bytes);
      EXPECT(layout.element_offset(count + layout.block_count - 1) >= bytes);  // no room for another block
    }
    EXPECT_EQ(wire_bytes(wire, 0), size_t{0});
    EXPECT_EQ(wire_bytes(wire, 1), layout.block_count + 1);
    EXPECT_EQ(wire_bytes(wire, layout.group_count()), layout.group_bytes());
  }
}

}  // namespace
}  // namespace dcomm::kernel_checks
