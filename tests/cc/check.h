// A small check harness: named functions that throw on failure. The same functions are run one by one
// from pytest (module.cc) and all together by the sanitizer executable (main.cc).
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace dcomm::checks {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registrar {
  Registrar(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class A, class B>
void expect_eq(const A& a, const B& b, const char* text, const char* file, int line) {
  if (a == b) return;
  std::ostringstream message;
  message << file << ':' << line << ": " << text << ": " << a << " vs " << b;
  throw Failure(message.str());
}

inline void expect(bool condition, const std::string& text, const char* file, int line) {
  if (condition) return;
  throw Failure(std::string(file) + ':' + std::to_string(line) + ": " + text);
}

}  // namespace dcomm::checks

/// Defines and registers a check: CHECK_CASE(ring_covers_everything) { ... }
#define CHECK_CASE(name)                                                  \
  static void name();                                                     \
  static const ::dcomm::checks::Registrar registrar_##name{#name, &name}; \
  static void name()

#define EXPECT_EQ(a, b) ::dcomm::checks::expect_eq((a), (b), #a " == " #b, __FILE__, __LINE__)
#define EXPECT(condition) ::dcomm::checks::expect((condition), #condition, __FILE__, __LINE__)
#define EXPECT_MSG(condition, message) ::dcomm::checks::expect((condition), (message), __FILE__, __LINE__)
