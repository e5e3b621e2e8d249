// The one exception type of the core, and checks that print both values. Floor: base.
//
// Every code maps to one Python class (csrc/python/module.cc); a message says what was given, what was
// expected and one next step.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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

/// A rank that an error is about, as its text says.
struct NamedRank {
  int rank = -1;
  int pid = 0;            // 0: not known, or the ranks are threads
  int64_t last_seq = -1;  // the last operation that it completed, 0: none so far; -1: not known, as during set-up
};
using NamedRanks = std::vector<NamedRank>;

/// These, with nothing but their numbers known.
NamedRanks named_ranks(const std::vector<int>& ranks);

class Error : public std::runtime_error {
 public:
  /// ranks: of kPeerLost the lost, of kTimeout the late, those that the text names first at the front.
  Error(ErrorCode code, const std::string& message, NamedRanks ranks = {})
      : std::runtime_error(message), code_(code), ranks_(std::move(ranks)) {}
  ErrorCode code() const noexcept { return code_; }
  const NamedRanks& ranks() const noexcept { return ranks_; }

 private:
  ErrorCode code_;
  NamedRanks ranks_;
};

/// Text and ranks of an error as bytes for another process: the text, and if there are ranks, a NUL and these.
std::string pack_error(const std::string& text, const NamedRanks& ranks);
/// The other way round. Whoever sent it: at worst there are no ranks, or wrong ones.
Error unpack_error(ErrorCode code, std::string_view packed);

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
