// Abstract Unix sockets of type SEQPACKET, and waiting with a deadline. Floor: comm.
//
// SEQPACKET keeps packet borders: a packet is sent whole or not at all, so no reader ever holds half a
// header. All sockets are non-blocking and close-on-exec; nothing here waits but Waiter.
#pragma once

#include <poll.h>
#include <sys/types.h>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace dcomm {

using Clock = std::chrono::steady_clock;

/// An owned descriptor that a forked child closes (fork_guard.h); in the child its destructor does nothing.
class GuardedFd {
 public:
  GuardedFd() = default;
  explicit GuardedFd(int descriptor);
  GuardedFd(GuardedFd&& other) noexcept;
  GuardedFd& operator=(GuardedFd&& other) noexcept;
  GuardedFd(const GuardedFd&) = delete;
  GuardedFd& operator=(const GuardedFd&) = delete;
  ~GuardedFd() { reset(); }

  int get() const { return descriptor_; }
  explicit operator bool() const { return descriptor_ >= 0; }
  int release() noexcept;  // the caller owns it from here on; no longer closed in a child
  void reset() noexcept;

 private:
  int descriptor_ = -1;
  uint32_t generation_ = 0;
};

/// The deadline of one blocking call, and the only place of set-up that waits.
class Waiter {
 public:
  Waiter(std::chrono::nanoseconds timeout, std::function<void()> on_wait);
  bool expired() const { return Clock::now() >= deadline_; }
  Clock::time_point deadline() const { return deadline_; }
  /// Polls until a descriptor is ready (true) or `until` or the deadline has passed (false). Restarts after
  /// a signal; calls on_wait about every 50 ms.
  bool wait(std::vector<pollfd>& descriptors, Clock::time_point until);
  bool wait(std::vector<pollfd>& descriptors) { return wait(descriptors, deadline_); }
  void sleep_for(std::chrono::nanoseconds duration);
  std::string timeout_text() const;  // "5.0 s"

 private:
  std::chrono::nanoseconds timeout_;
  Clock::time_point deadline_;
  std::function<void()> on_wait_;
  Clock::time_point last_call_;
};

enum class IoStatus {
  kDone,
  kWouldBlock,
  kTryLater,  // too many descriptors in flight (ETOOMANYREFS): poll would not tell when it is over
  kGarbled,   // a packet longer than the caller's buffer
  kClosed,    // the peer has hung up and everything that it sent has been read
};

/// One packet, with a descriptor when it is >= 0.
IoStatus send_packet(int socket, const void* data, size_t nbytes, int descriptor = -1);
/// One packet into `data`; its length goes to `nbytes`. A descriptor that comes with it goes to
/// `descriptor`; others are closed.
IoStatus receive_packet(int socket, void* data, size_t capacity, size_t* nbytes, GuardedFd* descriptor = nullptr);

/// Listener on an abstract name. Empty when the name is taken (EADDRINUSE); throws on any other failure.
GuardedFd listen_abstract(const std::string& name);
/// Empty, with errno set, when nobody listens (ECONNREFUSED) or the backlog is full (EAGAIN).
GuardedFd connect_abstract(const std::string& name);
/// Next connection; empty when there is none.
GuardedFd accept_connection(int listener);

struct PeerIdentity {
  uid_t uid = 0;
  pid_t pid = 0;  // 0: in a process namespace that we cannot see
};
/// SO_PEERCRED: whoever called connect() or listen() on the other side. False when the kernel does not say.
bool identify_peer(int socket, PeerIdentity* identity);
bool is_own_user(const PeerIdentity& identity);
/// SO_PEERPIDFD, else pidfd_open of the pid, else empty.
GuardedFd open_pidfd(int socket, pid_t pid);

void fill_random(void* data, size_t nbytes);
std::string to_hex(const uint8_t* data, size_t nbytes);

/// One line on stderr, at most one per second in the process; tells how many were left out.
void warn_rate_limited(const std::string& text);

/// "rank 3", "ranks 1, 3, 5 and 20 more", or "no rank".
std::string rank_list(const std::vector<int>& ranks);

}  // namespace dcomm
