// The one exception type of the core, and checks that print both values. Floor: base.
//
// Every code maps to one Python class (csrc/python/module.cc); a message says what was given, what was
// expected and one next step.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace dcomm {

enum class ErrorCode : uint8_t {
  kOk = 0,
  kInvalidArgument = 1,  // ValueError
  kPeerLost = 2,         // PeerLostError
  kTimeout = 3,          // CollectiveTimeoutError
  kMismatch = 4,         // MismatchError
  kVersionMismatch = 5,  // VersionMismatchError
  kAborted = 6,          // AbortedError
  kForked = 7,           // ForkedProcessError
  kSharedMemory = 8,     // SharedMemoryError
  kConcurrentUse = 9,    // ConcurrentUseError
  kCuda = 10,            // CudaError
  kInterrupted = 11,     // a signal handler raised: the Python error is already set
  kInternal = 12,        // DcommError
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// Builds a message from its parts: `throw_error(code, "got ", n, ", expected ", m)`.
template <class... Parts>
[[noreturn]] void throw_error(ErrorCode code, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(code, text.str());
}

/// Appends ": <strerror> (errno N)" for a failed system call.
[[noreturn]] void throw_errno(ErrorCode code, const std::string& what, int errno_value);

}  // namespace dcomm

#define DCOMM_CHECK(condition, code, ...)                      \
  do {                                                         \
    if (!(condition)) ::dcomm::throw_error(code, __VA_ARGS__); \
  } while (0)
