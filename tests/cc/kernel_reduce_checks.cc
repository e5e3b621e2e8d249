// Checks of the tile functions' reduce: every table that this CPU runs, bit by bit, against a naive reference
// (reference.h) that is written from the definitions alone.
#include <bit>
#include <cstring>
#include <memory>
#include <sstream>
#include <vector>

#include "kernel_types.h"

namespace dcomm::kernel_checks {
namespace {

struct Flags {
  ReduceOp op;
  Scale pre, post;
  bool round_own, is_final;
  int own_index;
};

template <class User, class Wire>
struct Expected {
  std::vector<typename Wire::Bits> wire;
  std::vector<typename User::Bits> user;
};

template <class User, class Wire>
Expected<User, Wire> reference(const std::vector<const char*>& inputs, const char* own, size_t count,
                               const Flags& flags) {
  Expected<User, Wire> expected;
  std::vector<typename User::Acc> values(inputs.size());
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j < inputs.size(); ++j) {
      if (static_cast<int>(j) == flags.own_index) {
        values[j] = scaled(User::widen(get<User>(own, i)), flags.pre);
        if (flags.round_own && is_half(Wire::kDType)) values[j] = Wire::widen(Wire::narrow(values[j]));
      } else {
        values[j] = Wire::widen(get<Wire>(inputs[j], i));
      }
    }
    auto value = scaled(checks::canonical_tree(flags.op, values, 0, values.size()), flags.post);
    if constexpr (std::is_floating_point_v<decltype(value)>) {
      if (flags.is_final && is_nan(value)) value = std::numeric_limits<decltype(value)>::quiet_NaN();
    }
    expected.wire.push_back(Wire::narrow(value));
    if constexpr (User::kDType == Wire::kDType) {
      expected.user.push_back(expected.wire.back());
    } else {
      expected.user.push_back(User::narrow(Wire::widen(expected.wire.back())));
    }
  }
  return expected;
}

/// Equal bits; but the NaN of a sum that is not final may have come from any of several NaNs.
template <class Type>
bool matches(const void* at, const std::vector<typename Type::Bits>& expected, bool any_nan) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto bits = get<Type>(at, i);
    if (bits == expected[i]) continue;
    if (!any_nan || !is_nan(Type::widen(bits)) || !is_nan(Type::widen(expected[i]))) return false;
  }
  return true;
}

template <class User, class Wire>
class ReduceCheck {
 public:
  explicit ReduceCheck(Random& random) : random_(random) {
    for (size_t j = 0; j <= kMaxInputs; ++j) slots_.push_back(std::make_unique<Fenced>(kSlotBytes + kMaxShift));
  }

  void run(int num_inputs, size_t count, const Flags& flags, size_t variant) {
    const bool in_place = variant % 2 == 0;
    const bool has_out = variant % 7 != 3;
    // None, one or all of the other ranks' slots, or, when not in place, one that is no input.
    const int num_outputs = variant % 5 == 4 ? 0 : variant % 3 == 0 && in_place ? num_inputs - 1 : 1;
    const size_t shift = variant % 4 == 1 ? variant % kMaxShift : 0;          // else the own input ends at the fence
    slot_bytes_ = kSlotBytes + (variant % 6 == 5 ? variant % kMaxShift : 0);  // slots at any address, too
    fill(num_inputs, count);
    char* const own = user_in_.last(count * kUser + shift);
    fill_again(num_inputs, count, own);
    std::vector<const char*> inputs;
    for (int j = 0; j < num_inputs; ++j) inputs.push_back(slots_[static_cast<size_t>(j)]->last(slot_bytes_));
    const auto expected = reference<User, Wire>(inputs, own, count, flags);

    std::vector<const void*> pointers(inputs.begin(), inputs.end());
    if (flags.own_index >= 0) pointers[static_cast<size_t>(flags.own_index)] = nullptr;  // must not be read
    std::vector<void*> outputs;
    for (int j = 0; j < num_inputs && in_place; ++j) {
      if (j != flags.own_index && static_cast<int>(outputs.size()) < num_outputs) {
        outputs.push_back(slots_[static_cast<size_t>(j)]->last(slot_bytes_));
      }
    }
    if (!in_place && num_outputs > 0) outputs.push_back(slots_[kMaxInputs]->last(slot_bytes_));
    char* const out = !has_out ? nullptr : in_place ? own : user_out_.last(count * kUser + shift);

    ReduceTile tile;
    tile.inputs = pointers.data();
    tile.num_inputs = num_inputs;
    tile.own_index = flags.own_index;
    tile.own = flags.own_index >= 0 ? own : nullptr;
    tile.out = out;
    tile.wire_outputs = outputs.data();
    tile.num_wire_outputs = static_cast<int>(outputs.size());
    tile.count = count;
    tile.pre = flags.pre;
    tile.post = flags.post;
    tile.round_own = flags.round_own;
    tile.is_final = flags.is_final;
    const bool any_nan = !flags.is_final && !is_half(Wire::kDType) && num_inputs > 1;
    for (const KernelTable* table : tables_) {
      fill_again(num_inputs, count, own);
      table->find(User::kDType, Wire::kDType, flags.op)->reduce(tile);
      bool good = out == nullptr || matches<User>(out, expected.user, any_nan);
      for (void* output : outputs) {
        good = good && matches<Wire>(output, expected.wire, any_nan);
        good = good && is_untouched(static_cast<char*>(output) + count * kWire, kMargin);
      }
      if (good) continue;
      std::ostringstream text;
      text << table->isa << " " << reduce_op_name(flags.op) << " " << dtype_name(User::kDType) << "/"
           << dtype_name(Wire::kDType) << " inputs=" << num_inputs << " count=" << count << " own=" << flags.own_index
           << " pre=" << flags.pre.number << " post=" << flags.post.number << " round_own=" << flags.round_own
           << " final=" << flags.is_final << " in_place=" << in_place << " outputs=" << outputs.size()
           << " variant=" << variant << ": not the reference's bits";
      throw checks::Failure(text.str());
    }
  }

 private:
  static constexpr size_t kMaxInputs = 33;
  static constexpr size_t kMaxShift = 64;
  static constexpr size_t kUser = sizeof(typename User::Bits), kWire = sizeof(typename Wire::Bits);
  static constexpr size_t kSlotBytes = (kMaxCount * kWire + kMargin + 63) / 64 * 64;

  void fill(int num_inputs, size_t count) {
    originals_.resize(static_cast<size_t>(num_inputs));
    // Specials in one input at most elements, so that a sum of many is not nearly always NaN.
    const size_t special = random_() % static_cast<size_t>(num_inputs + 1);
    for (size_t j = 0; j < originals_.size(); ++j) {
      originals_[j].assign(count * kWire + kMargin, kUntouched);
      for (size_t i = 0; i < count; ++i) {
        set<Wire>(originals_[j].data(), i, random_element<Wire>(random_, i % 3 == 0 && (j == special || i % 57 == 0)));
      }
    }
    own_.resize(count * kUser);
    for (size_t i = 0; i < count; ++i) {
      set<User>(own_.data(), i, random_element<User>(random_, i % 3 == 1 && special % 2 == 0));
    }
  }

  void fill_again(int num_inputs, size_t count, char* own) {
    for (size_t j = 0; j < static_cast<size_t>(num_inputs); ++j) {
      std::memcpy(slots_[j]->last(slot_bytes_), originals_[j].data(), originals_[j].size());
    }
    std::memset(slots_[kMaxInputs]->last(slot_bytes_), kUntouched, slot_bytes_);
    if (count > 0) std::memcpy(own, own_.data(), count * kUser);
  }

  Random& random_;
  size_t slot_bytes_ = kSlotBytes;
  const std::vector<const KernelTable*> tables_ = available_tables();
  std::vector<std::unique_ptr<Fenced>> slots_;
  const Fenced user_in_{kMaxCount * kUser + kMaxShift}, user_out_{kMaxCount * kUser + kMaxShift};
  std::vector<std::vector<char>> originals_;
  std::vector<char> own_;
};

template <class User, class Wire>
void check_reduce(Random& random, ReduceOp op) {
  ReduceCheck<User, Wire> check(random);
  size_t variant = 0;
  const bool is_scaled = is_defined(ReduceOp::kAvg, User::kDType);
  for (int num_inputs : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33}) {
    for (size_t count : kCounts) {
      for (const Scale pre : {Scale{}, {2.0}, {3.0}, {0.3, true}}) {
        for (const Scale post : {Scale{}, {2.0}, {7.0}}) {
          if (!is_scaled && (pre.number != 1.0) != (post.number != 1.0)) continue;  // ignored, one as the other
          for (int bits = 0; bits < 4; ++bits) {
            if (++variant % kThinning != 0) continue;
            // Any position is the own one, and now and then none is.
            const int own = variant % 11 == 10 ? -1 : static_cast<int>(random() % static_cast<size_t>(num_inputs));
            const Flags flags{op, pre, post, (bits & 1) != 0, (bits & 2) != 0, own};
            check.run(num_inputs, count, flags, random() % 420);
          }
        }
      }
    }
  }
}

CHECK_CASE(kernel_reduce_against_reference) {
  Random random(3);
  for_each_pair(
      [&]<class User, class Wire>() { for_each_op<User>([&](ReduceOp op) { check_reduce<User, Wire>(random, op); }); });
}

// ---- Every pair of the elements that matter. ----

/// inputs -> their final result, from `table`; the one at own_index is the array's.
template <class Type>
std::vector<typename Type::Bits> reduced(const KernelTable& table, ReduceOp op,
                                         const std::vector<std::vector<typename Type::Bits>>& inputs, int own_index) {
  std::vector<const void*> pointers;
  for (const auto& input : inputs) pointers.push_back(input.data());
  std::vector<typename Type::Bits> out(inputs[0].size()), wire_out(inputs[0].size());
  void* const wire_outputs[] = {wire_out.data()};
  ReduceTile tile;
  tile.inputs = pointers.data();
  tile.num_inputs = static_cast<int>(inputs.size());
  tile.own_index = own_index;
  tile.own = pointers[static_cast<size_t>(own_index)];
  tile.out = out.data();
  tile.wire_outputs = wire_outputs;
  tile.num_wire_outputs = 1;
  tile.count = out.size();
  tile.is_final = true;
  table.find(Type::kDType, Type::kDType, op)->reduce(tile);
  EXPECT(out == wire_out);
  return out;
}

template <class Type>
void check_pairs(const std::vector<typename Type::Bits>& elements, ReduceOp op) {
  std::vector<std::vector<typename Type::Bits>> inputs(2);
  for (const auto a : elements) {
    for (const auto b : elements) {
      inputs[0].push_back(a);
      inputs[1].push_back(b);
    }
  }
  // Two inputs are combined in registers, three by blocks; the third one gives no new case.
  for (const size_t num_inputs : {2, 3}) {
    if (num_inputs == 3) inputs.push_back(inputs[0]);
    for (const int own : {0, 1}) {
      std::vector<typename Type::Bits> scalar;
      for (const KernelTable* table : available_tables()) {
        const auto result = reduced<Type>(*table, op, inputs, own);
        if (scalar.empty()) scalar = result;
        EXPECT(result == scalar);
        for (size_t i = 0; i < result.size(); ++i) {
          std::vector<typename Type::Acc> terms;
          for (const auto& input : inputs) terms.push_back(Type::widen(input[i]));
          const auto value = checks::canonical_tree(op, terms, 0, terms.size());
          auto expected = Type::narrow(value);
          if constexpr (std::is_floating_point_v<typename Type::Acc>) {
            if (is_nan(value)) expected = Type::narrow(std::numeric_limits<typename Type::Acc>::quiet_NaN());
          }
          if (result[i] == expected) continue;
          std::ostringstream text;
          text << table->isa << " " << reduce_op_name(op) << " " << dtype_name(Type::kDType) << std::hex << " of "
               << +inputs[0][i] << " and " << +inputs[1][i] << " is " << +result[i] << ", expected " << +expected;
          throw checks::Failure(text.str());
        }
      }
    }
  }
}

CHECK_CASE(kernel_reduce_special_pairs) {
  for_each_pair([&]<class User, class Wire>() {
    if constexpr (User::kDType == Wire::kDType) {
      for_each_op<User>([&](ReduceOp op) { check_pairs<User>(special_elements<User>(), op); });
    }
  });
}

CHECK_CASE(kernel_reduce_all_byte_pairs) {
  std::vector<uint8_t> all(256);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint8_t>(i);
  for_each_op<I8>([&](ReduceOp op) { check_pairs<I8>(all, op); });
  for_each_op<U8>([&](ReduceOp op) { check_pairs<U8>(all, op); });
}

// A few results written out, so that no mistake can hide in a reference that shares it.
CHECK_CASE(kernel_reduce_known_results) {
  constexpr uint32_t kMinusZero = 0x80000000, kInf = 0x7f800000, kMinusInf = 0xff800000, kNan = 0x7fc00000;
  constexpr uint32_t kSignallingNan = 0xff800001, kOne = 0x3f800000, kTwo = 0x40000000, kTiny = 1;
  using Column = std::vector<uint32_t>;
  const std::vector<Column> floats{{0, kMinusZero, kSignallingNan, kInf, kTwo, kMinusInf, kTiny},
                                   {kMinusZero, 0, kMinusInf, kNan, kOne, kOne, kMinusZero}};
  const std::vector<Column> integers{{0x7fffffff, 0x80000000, 5, 0xffffffff}, {2, 0xffffffff, 3, 0}};
  for (const KernelTable* table : available_tables()) {
    for (const int own : {0, 1}) {
      const auto f32 = [&](ReduceOp op) { return reduced<F32>(*table, op, floats, own); };
      EXPECT(f32(ReduceOp::kMin) == (Column{kMinusZero, kMinusZero, kNan, kNan, kOne, kMinusInf, kMinusZero}));
      EXPECT(f32(ReduceOp::kMax) == (Column{0, 0, kNan, kNan, kTwo, kOne, kTiny}));
      EXPECT(f32(ReduceOp::kProd) == (Column{kMinusZero, kMinusZero, kNan, kNan, kTwo, kMinusInf, kMinusZero}));
      const auto i32 = [&](ReduceOp op) { return reduced<I32>(*table, op, integers, own); };
      EXPECT(i32(ReduceOp::kSum) == (Column{0x80000001, 0x7fffffff, 8, 0xffffffff}));
      EXPECT(i32(ReduceOp::kProd) == (Column{0xfffffffe, 0x80000000, 15, 0}));
      EXPECT(i32(ReduceOp::kMin) == (Column{2, 0x80000000, 3, 0xffffffff}));
      EXPECT(i32(ReduceOp::kMax) == (Column{0x7fffffff, 0xffffffff, 5, 0}));
      EXPECT(i32(ReduceOp::kBand) == (Column{2, 0x80000000, 1, 0}));
      EXPECT(i32(ReduceOp::kBor) == (Column{0x7fffffff, 0xffffffff, 7, 0xffffffff}));
      EXPECT(i32(ReduceOp::kBxor) == (Column{0x7ffffffd, 0x7fffffff, 6, 0xffffffff}));
    }
  }
}

}  // namespace
}  // namespace dcomm::kernel_checks
