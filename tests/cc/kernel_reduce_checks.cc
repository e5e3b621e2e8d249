// Checks of the tile functions' reduce: every table that this CPU runs, bit by bit, against a naive reference
// that is written from the definition of the canonical order alone (docs/decisions.md 1).
#include <bit>
#include <cstring>
#include <memory>
#include <sstream>
#include <vector>

#include "kernel_types.h"

namespace dcomm::kernel_checks {
namespace {

/// [lo, hi) split at lo + the largest power of two below its length.
template <class Acc>
Acc canonical_sum(const Acc* values, size_t lo, size_t hi) {
  if (hi - lo == 1) return values[lo];
  const size_t middle = lo + std::bit_floor(hi - lo - 1);
  return canonical_sum(values, lo, middle) + canonical_sum(values, middle, hi);
}

struct Flags {
  double pre, post;
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
        values[j] = divided(User::widen(get<User>(own, i)), flags.pre);
        if (flags.round_own && is_half(Wire::kDType)) values[j] = Wire::widen(Wire::narrow(values[j]));
      } else {
        values[j] = Wire::widen(get<Wire>(inputs[j], i));
      }
    }
    auto sum = divided(canonical_sum(values.data(), 0, values.size()), flags.post);
    if (flags.is_final && is_nan(sum)) {
      if constexpr (sizeof(sum) == 8) sum = std::bit_cast<decltype(sum)>(uint64_t{0x7ff8000000000000});
      if constexpr (sizeof(sum) == 4) sum = std::bit_cast<decltype(sum)>(kF32QuietNan);
    }
    expected.wire.push_back(Wire::narrow(sum));
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
    for (size_t j = 0; j <= kMaxInputs; ++j) slots_.push_back(std::make_unique<Fenced>(kSlotBytes));
  }

  void run(int num_inputs, size_t count, const Flags& flags, size_t variant) {
    const bool in_place = variant % 2 == 0;
    const bool has_out = variant % 7 != 3;
    // None, one or all of the other ranks' slots, or, when not in place, one that is no input.
    const int num_outputs = variant % 5 == 4 ? 0 : variant % 3 == 0 && in_place ? num_inputs - 1 : 1;
    const size_t shift = variant % 4 == 1 ? variant % 64 : 0;  // else the own input ends at the fence
    fill(num_inputs, count);
    char* const own = user_in_.last(count * kUser + shift);
    fill_again(num_inputs, count, own);
    std::vector<const char*> inputs;
    for (int j = 0; j < num_inputs; ++j) inputs.push_back(slots_[static_cast<size_t>(j)]->last(kSlotBytes));
    const auto expected = reference<User, Wire>(inputs, own, count, flags);

    std::vector<const void*> pointers(inputs.begin(), inputs.end());
    if (flags.own_index >= 0) pointers[static_cast<size_t>(flags.own_index)] = nullptr;  // must not be read
    std::vector<void*> outputs;
    for (int j = 0; j < num_inputs && in_place; ++j) {
      if (j != flags.own_index && static_cast<int>(outputs.size()) < num_outputs) {
        outputs.push_back(slots_[static_cast<size_t>(j)]->last(kSlotBytes));
      }
    }
    if (!in_place && num_outputs > 0) outputs.push_back(slots_[kMaxInputs]->last(kSlotBytes));
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
    tile.pre = {flags.pre};
    tile.post = {flags.post};
    tile.round_own = flags.round_own;
    tile.is_final = flags.is_final;
    const bool any_nan = !flags.is_final && !is_half(Wire::kDType) && num_inputs > 1;
    for (const KernelTable* table : tables_) {
      fill_again(num_inputs, count, own);
      table->find(User::kDType, Wire::kDType, ReduceOp::kSum)->reduce(tile);
      bool good = out == nullptr || matches<User>(out, expected.user, any_nan);
      for (void* output : outputs) {
        good = good && matches<Wire>(output, expected.wire, any_nan);
        good = good && is_untouched(static_cast<char*>(output) + count * kWire, kMargin);
      }
      if (good) continue;
      std::ostringstream text;
      text << table->isa << " " << dtype_name(User::kDType) << "/" << dtype_name(Wire::kDType)
           << " inputs=" << num_inputs << " count=" << count << " own=" << flags.own_index << " pre=" << flags.pre
           << " post=" << flags.post << " round_own=" << flags.round_own << " final=" << flags.is_final
           << " in_place=" << in_place << " outputs=" << outputs.size() << " variant=" << variant
           << ": not the reference's bits";
      throw checks::Failure(text.str());
    }
  }

 private:
  static constexpr size_t kMaxInputs = 33;
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
      std::memcpy(slots_[j]->last(kSlotBytes), originals_[j].data(), originals_[j].size());
    }
    std::memset(slots_[kMaxInputs]->last(kSlotBytes), kUntouched, kSlotBytes);
    if (count > 0) std::memcpy(own, own_.data(), count * kUser);
  }

  Random& random_;
  const std::vector<const KernelTable*> tables_ = available_tables();
  std::vector<std::unique_ptr<Fenced>> slots_;
  const Fenced user_in_{kMaxCount * kUser + 64}, user_out_{kMaxCount * kUser + 64};
  std::vector<std::vector<char>> originals_;
  std::vector<char> own_;
};

template <class User, class Wire>
void check_reduce(Random& random) {
  ReduceCheck<User, Wire> check(random);
  size_t variant = 0;
  for (int num_inputs : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33}) {
    for (size_t count : kCounts) {
      for (double pre : {1.0, 2.0, 3.0}) {
        for (double post : {1.0, 2.0, 7.0}) {
          for (int bits = 0; bits < 4; ++bits) {
            if (++variant % kThinning != 0) continue;
            // Any position is the own one, and now and then none is.
            const int own = variant % 11 == 10 ? -1 : static_cast<int>(random() % static_cast<size_t>(num_inputs));
            const Flags flags{pre, post, (bits & 1) != 0, (bits & 2) != 0, own};
            check.run(num_inputs, count, flags, random() % 420);
          }
        }
      }
    }
  }
}

CHECK_CASE(kernel_reduce_against_reference) {
  Random random(3);
  for_each_pair([&]<class User, class Wire>() { check_reduce<User, Wire>(random); });
}

}  // namespace
}  // namespace dcomm::kernel_checks
