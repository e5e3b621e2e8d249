// The handle of an asynchronous operation. Floor: comm.
#pragma once

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "launch/host_launch.h"

namespace dcomm {

class Work {
 public:
  Work(const CollectiveCall& call, int64_t timeout_ns, std::string call_site = "")
      : call_(call), timeout_ns_(timeout_ns), call_site_(std::move(call_site)) {}
  ~Work() {
    if (event_ >= 0) ::close(event_);
  }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  const CollectiveCall& call() const { return call_; }
  int64_t timeout_ns() const { return timeout_ns_; }
  /// Where the program called it; "": not recorded (comm/call_site.h).
  const std::string& call_site() const { return call_site_; }

  bool done() const {
    std::lock_guard lock(mutex_);
    return done_;
  }
  /// True once the operation has ended; throws nothing.
  bool wait_for(std::chrono::nanoseconds limit) const {
    std::unique_lock lock(mutex_);
    return ended_.wait_for(lock, limit, [&] { return done_; });
  }
  /// Why it failed; nothing where it went well or is not done.
  std::optional<Error> error() const {
    std::lock_guard lock(mutex_);
    return error_;
  }

  /// The rank whose message a receive took; -1: not done, or no message.
  int source() const {
    std::lock_guard lock(mutex_);
    return source_;
  }

  /// A descriptor that becomes readable, for good, when the operation ends; the caller closes it. For event loops.
  int open_event() {
    std::lock_guard lock(mutex_);
    if (event_ < 0) event_ = ::eventfd(done_ ? 1 : 0, EFD_CLOEXEC | EFD_NONBLOCK);
    const int descriptor = event_ < 0 ? -1 : ::fcntl(event_, F_DUPFD_CLOEXEC, 0);
    DCOMM_CHECK(descriptor >= 0, ErrorCode::kInternal, "no descriptor for an event (errno ", errno,
                "); this process has probably run out of them, raise ulimit -n");
    return descriptor;
  }

  /// error: nothing where it went well.
  void finish(const std::optional<Error>& error, int source = -1) {
    {
      std::lock_guard lock(mutex_);
      if (done_) return;
      error_ = error;
      source_ = source;
      done_ = true;
      if (event_ >= 0) ::eventfd_write(event_, 1);
    }
    ended_.notify_all();
  }

 private:
  const CollectiveCall call_;
  const int64_t timeout_ns_;
  const std::string call_site_;
  mutable std::mutex mutex_;
  mutable std::condition_variable ended_;
  bool done_ = false;
  int event_ = -1;  // an eventfd, once somebody has asked for one
  std::optional<Error> error_;
  int source_ = -1;
};

}  // namespace dcomm
