// System calls of the set-up sockets. Floor: comm. See unix(7), socket(7), cmsg(3).
#include "comm/unix_socket.h"

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "comm/fork_guard.h"

namespace dcomm {
namespace {

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Linux 6.5
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434  // Linux 5.3, same number on every architecture
#endif

constexpr std::chrono::milliseconds kInterruptPeriod{50};
constexpr std::chrono::hours kLongestTimeout{24 * 365};  // keeps now() + timeout from overflowing
constexpr int kBacklog = 4096;

GuardedFd make_socket() {
  GuardedFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) throw_errno(ErrorCode::kInternal, "cannot make a Unix socket (raise ulimit -n?)", errno);
  return socket;
}

socklen_t abstract_address(const std::string& name, sockaddr_un* address) {
  std::memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  DCOMM_CHECK(name.size() < sizeof address->sun_path, ErrorCode::kInternal, "socket name too long: ", name);
  std::memcpy(address->sun_path + 1, name.data(), name.size());  // the leading zero byte makes it abstract
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

timespec to_timespec(std::chrono::nanoseconds duration) {
  const auto nanoseconds = std::max<int64_t>(0, duration.count());
  return {static_cast<time_t>(nanoseconds / 1'000'000'000), static_cast<long>(nanoseconds % 1'000'000'000)};
}

/// Takes the first descriptor of a received message and closes all others.
void take_descriptors(msghdr* message, GuardedFd* first) {
  for (cmsghdr* part = CMSG_FIRSTHDR(message); part != nullptr; part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int descriptor = -1;
      std::memcpy(&descriptor, CMSG_DATA(part) + i * sizeof(int), sizeof descriptor);
      GuardedFd received(descriptor);
      if (!*first) *first = std::move(received);
    }
  }
}

}  // namespace

GuardedFd::GuardedFd(int descriptor) : descriptor_(descriptor), generation_(fork_generation()) {
  close_in_child(descriptor);
}

GuardedFd::GuardedFd(GuardedFd&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), generation_(other.generation_) {}

GuardedFd& GuardedFd::operator=(GuardedFd&& other) noexcept {
  if (this != &other) {
    reset();
    descriptor_ = std::exchange(other.descriptor_, -1);
    generation_ = other.generation_;
  }
  return *this;
}

int GuardedFd::release() noexcept {
  if (generation_ == fork_generation()) forget_in_child(descriptor_);
  return std::exchange(descriptor_, -1);
}

void GuardedFd::reset() noexcept {
  const bool ours = generation_ == fork_generation();
  const int descriptor = release();
  if (descriptor >= 0 && ours) ::close(descriptor);
}

Waiter::Waiter(std::chrono::nanoseconds timeout, std::function<void()> on_wait)
    : timeout_(std::clamp<std::chrono::nanoseconds>(timeout, std::chrono::nanoseconds(0), kLongestTimeout)),
      deadline_(Clock::now() + timeout_),
      on_wait_(std::move(on_wait)),
      last_call_(Clock::now()) {}

bool Waiter::wait(std::vector<pollfd>& descriptors, Clock::time_point until) {
  const Clock::time_point end = std::min(until, deadline_);
  for (;;) {
    Clock::time_point now = Clock::now();
    const Clock::time_point slice_end = on_wait_ ? std::min(end, now + kInterruptPeriod) : end;
    const timespec remaining = to_timespec(slice_end - now);
    const int num_ready = ::ppoll(descriptors.data(), descriptors.size(), &remaining, nullptr);
    if (num_ready < 0 && errno != EINTR) throw_errno(ErrorCode::kInternal, "poll of the set-up sockets", errno);
    now = Clock::now();
    if (on_wait_ && (num_ready < 0 || now - last_call_ >= kInterruptPeriod)) {
      last_call_ = now;
      on_wait_();
    }
    if (num_ready > 0) return true;
    if (now >= end) return false;
  }
}

void Waiter::sleep_for(std::chrono::nanoseconds duration) {
  std::vector<pollfd> nothing;
  wait(nothing, Clock::now() + duration);
}

std::string Waiter::timeout_text() const {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", std::chrono::duration<double>(timeout_).count());
  return text;
}

IoStatus send_packet(int socket, const void* data, size_t nbytes, int descriptor) {
  iovec piece{const_cast<void*>(data), nbytes};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(part), &descriptor, sizeof descriptor);
  }
  for (;;) {
    if (::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return IoStatus::kDone;
    if (errno == EINTR) continue;
    if (errno == EAGAIN) return IoStatus::kWouldBlock;
    if (errno == ETOOMANYREFS || errno == ENOBUFS || errno == ENOMEM) return IoStatus::kTryLater;
    return IoStatus::kClosed;
  }
}

IoStatus receive_packet(int socket, void* data, size_t capacity, size_t* nbytes, GuardedFd* descriptor) {
  *nbytes = 0;
  for (;;) {
    iovec piece{data, capacity};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    if (descriptor != nullptr) {  // without room for them the kernel drops descriptors by itself
      message.msg_control = control;
      message.msg_controllen = sizeof control;
    }
    const ssize_t received = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (received > 0) {
      if (descriptor != nullptr) take_descriptors(&message, descriptor);
      if ((message.msg_flags & MSG_TRUNC) != 0) return IoStatus::kGarbled;
      *nbytes = static_cast<size_t>(received);
      return IoStatus::kDone;
    }
    if (received == 0) return IoStatus::kClosed;
    // ECONNRESET is told once, when the peer closed with something of ours unread; what it had sent before,
    // a goodbye perhaps, is still there to be read.
    if (errno == EINTR || errno == ECONNRESET) continue;
    return errno == EAGAIN ? IoStatus::kWouldBlock : IoStatus::kClosed;
  }
}

GuardedFd listen_abstract(const std::string& name) {
  GuardedFd socket = make_socket();
  sockaddr_un address;
  const socklen_t length = abstract_address(name, &address);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    if (errno == EADDRINUSE) return {};
    throw_errno(ErrorCode::kInternal, "bind of the abstract socket " + name, errno);
  }
  if (::listen(socket.get(), kBacklog) != 0) throw_errno(ErrorCode::kInternal, "listen on " + name, errno);
  return socket;
}

GuardedFd connect_abstract(const std::string& name) {
  GuardedFd socket = make_socket();
  sockaddr_un address;
  const socklen_t length = abstract_address(name, &address);
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    if (errno == EINTR) continue;
    const int error = errno;
    socket.reset();
    errno = error;
    return {};
  }
  return socket;
}

GuardedFd accept_connection(int listener) {
  for (;;) {
    GuardedFd socket(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) return socket;
    if (errno == EAGAIN) return {};
    if (errno == EINTR || errno == ECONNABORTED) continue;
    throw_errno(ErrorCode::kInternal, "cannot accept a connection (raise ulimit -n?)", errno);
  }
}

bool identify_peer(int socket, PeerIdentity* identity) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return false;
  *identity = {credentials.uid, credentials.pid};
  return true;
}

bool is_own_user(const PeerIdentity& identity) { return identity.uid == ::geteuid(); }

GuardedFd open_pidfd(int socket, pid_t pid) {
  int descriptor = -1;
  socklen_t length = sizeof descriptor;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &descriptor, &length) == 0) return GuardedFd(descriptor);
  if (pid <= 0) return {};
  return GuardedFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));  // close-on-exec by definition
}

void fill_random(void* data, size_t nbytes) {
  auto* next = static_cast<uint8_t*>(data);
  while (nbytes > 0) {
    const ssize_t count = ::getrandom(next, nbytes, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_errno(ErrorCode::kInternal, "getrandom", errno);
    next += count;
    nbytes -= static_cast<size_t>(count);
  }
}

std::string to_hex(const uint8_t* data, size_t nbytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * nbytes);
  for (size_t i = 0; i < nbytes; ++i) {
    text += kDigits[data[i] >> 4];
    text += kDigits[data[i] & 15];
  }
  return text;
}

void warn_rate_limited(const std::string& text) {
  static std::atomic<int64_t> next_ns{INT64_MIN};
  static std::atomic<uint64_t> num_left_out{0};
  const int64_t now_ns = std::chrono::nanoseconds(Clock::now().time_since_epoch()).count();
  int64_t next = next_ns.load(std::memory_order_relaxed);
  if (now_ns < next || !next_ns.compare_exchange_strong(next, now_ns + 1'000'000'000, std::memory_order_relaxed)) {
    num_left_out.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  const uint64_t left_out = num_left_out.exchange(0, std::memory_order_relaxed);
  const std::string suffix = left_out == 0 ? "" : " (" + std::to_string(left_out) + " warnings before it left out)";
  std::fprintf(stderr, "dcomm: %s%s\n", text.c_str(), suffix.c_str());
}

std::string rank_list(const std::vector<int>& ranks) {
  constexpr size_t kMostNamed = 32;
  if (ranks.empty()) return "no rank";
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < std::min(ranks.size(), kMostNamed); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  }
  if (ranks.size() > kMostNamed) text += " and " + std::to_string(ranks.size() - kMostNamed) + " more";
  return text;
}

}  // namespace dcomm
