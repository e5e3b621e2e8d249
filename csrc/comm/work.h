// The handle of an asynchronous operation. Floor: comm.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "base/error.h"
#include "launch/host_launch.h"

namespace dcomm {

class Work {
 public:
  Work(const CollectiveCall& call, int64_t timeout_ns) : call_(call), timeout_ns_(timeout_ns) {}

  const CollectiveCall& call() const { return call_; }
  int64_t timeout_ns() const { return timeout_ns_; }

  bool done() const {
    std::lock_guard lock(mutex_);
    return done_;
  }
  /// True once the operation has ended; throws nothing.
  bool wait_for(std::chrono::nanoseconds limit) const {
    std::unique_lock lock(mutex_);
    return ended_.wait_for(lock, limit, [&] { return done_; });
  }
  /// kOk, or why it failed; meaningful once done.
  ErrorCode error_code() const {
    std::lock_guard lock(mutex_);
    return code_;
  }
  std::string error_message() const {
    std::lock_guard lock(mutex_);
    return message_;
  }

  void finish(ErrorCode code, const std::string& message) {
    {
      std::lock_guard lock(mutex_);
      if (done_) return;
      code_ = code;
      message_ = message;
      done_ = true;
    }
    ended_.notify_all();
  }

 private:
  const CollectiveCall call_;
  const int64_t timeout_ns_;
  mutable std::mutex mutex_;
  mutable std::condition_variable ended_;
  bool done_ = false;
  ErrorCode code_ = ErrorCode::kOk;
  std::string message_;
};

}  // namespace dcomm
