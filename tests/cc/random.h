// A small seeded generator for the checks: the same numbers from every standard library.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "protocol/fingerprint.h"

namespace dcomm::checks {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15ull;
    return hash_mix(state_, 0);
  }
  /// In [0, bound).
  uint64_t below(uint64_t bound) { return next() % bound; }
  /// One of the arguments.
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[below(values.size())];
  }
  bool coin() { return below(2) != 0; }

 private:
  uint64_t state_;
};

}  // namespace dcomm::checks
