// The watcher thread of a process group: pidfds, sockets, and an eventfd to stop it. Floor: comm.
//
// A peer has ended when its pidfd becomes readable or its socket hangs up, whichever comes first: a forked
// data-loader child of a dead rank keeps its socket open, and where pidfds are refused (old kernels, other
// process namespaces) only the socket tells. A goodbye that was sent before is still in the socket's buffer
// then, so the socket is always read before a death is reported.
#include "comm/liveness.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/failpoint.h"
#include "comm/fork_guard.h"
#include "comm/packet.h"
#include "comm/unix_socket.h"

namespace dcomm {
namespace {

enum class SocketNews { kNothing, kGoodbye, kExits, kEnd };

/// Reads what a peer has sent since set-up up to nothing, a goodbye, or the end.
SocketNews read_news(int rank, int socket, const Liveness::OnPacket& on_packet) {
  for (;;) {
    uint8_t buffer[kMaxPacketBytes];
    size_t nbytes = 0;
    PeerPacket packet;
    const IoStatus status = receive_packet(socket, buffer, sizeof buffer, &nbytes, &packet.descriptor);
    if (status == IoStatus::kWouldBlock) return SocketNews::kNothing;
    if (status == IoStatus::kClosed) return SocketNews::kEnd;
    const auto header = status == IoStatus::kDone ? decode_header(buffer, nbytes) : std::nullopt;
    if (header && header->type == PacketType::kGoodbye) {
      return header->kind == static_cast<uint32_t>(GoodbyeKind::kExits) ? SocketNews::kExits : SocketNews::kGoodbye;
    }
    // Its last step of set-up failed, perhaps because another rank has died: it lives, and leaves.
    if (header && header->type == PacketType::kAbort) return SocketNews::kGoodbye;
    const bool has_id = header && nbytes == sizeof *header + sizeof packet.id && header->type != PacketType::kData;
    if (!has_id || !on_packet) {
      std::fprintf(stderr, "dcomm: rank %d sent an unknown packet after set-up; it counts as lost\n", rank);
      return SocketNews::kEnd;
    }
    packet.type = header->type;
    std::memcpy(&packet.id, buffer + sizeof *header, sizeof packet.id);
    try {
      on_packet(rank, std::move(packet));
    } catch (const std::exception& error) {
      std::fprintf(stderr, "dcomm: a packet of rank %d was lost: %s\n", rank, error.what());
    }
  }
}

/// All signals stay with the application's threads.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &previous_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

 private:
  sigset_t previous_;
};

}  // namespace

struct Liveness::State {
  std::shared_ptr<Mesh> mesh;
  OnExit on_exit;
  OnPacket on_packet;
  GuardedFd wake;
  std::atomic<bool> stop{false};
  std::atomic<bool> goodbye_said{false};
  uint32_t generation = 0;
  std::thread watcher;

  void watch() noexcept;
  void report(int rank, PeerExit how) const noexcept;
};

void Liveness::State::watch() noexcept {
  pthread_setname_np(pthread_self(), "dcomm-liveness");
  // Two entries per rank, socket and pidfd; poll skips negative descriptors. Entry 2n is the eventfd.
  const int world_size = mesh->world_size();
  std::vector<pollfd> watched(2 * static_cast<size_t>(world_size) + 1, pollfd{-1, POLLIN, 0});
  for (int rank = 0; rank < world_size; ++rank) {
    const Mesh::Peer& peer = mesh->peer(rank);
    const size_t entry = 2 * static_cast<size_t>(rank);
    watched[entry].fd = peer.socket;
    // A rank that is a thread of this process cannot die alone.
    if (peer.pid != ::getpid()) watched[entry + 1].fd = peer.pidfd;
  }
  watched.back().fd = wake.get();
  while (!stop.load(std::memory_order_acquire)) {
    if (::poll(watched.data(), watched.size(), -1) < 0) {
      if (errno != EINTR) ::usleep(10'000);  // out of kernel memory: try again, never spin
      continue;
    }
    for (int rank = 0; rank < world_size; ++rank) {
      const size_t entry = 2 * static_cast<size_t>(rank);
      const bool socket_ready = watched[entry].fd >= 0 && watched[entry].revents != 0;
      const bool process_ended = watched[entry + 1].fd >= 0 && watched[entry + 1].revents != 0;
      if (!socket_ready && !process_ended) continue;
      const SocketNews news = read_news(rank, mesh->peer(rank).socket, on_packet);
      if (news == SocketNews::kNothing && !process_ended) continue;
      watched[entry].fd = -1;  // reported once, watched no more
      watched[entry + 1].fd = -1;
      report(rank, news == SocketNews::kGoodbye ? PeerExit::kLeft
                   : news == SocketNews::kExits ? PeerExit::kExits
                                                : PeerExit::kDied);
    }
  }
}

void Liveness::State::report(int rank, PeerExit how) const noexcept {
  try {
    on_exit(rank, how);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dcomm: the handler of the end of rank %d failed: %s\n", rank, error.what());
  } catch (...) {
    std::fprintf(stderr, "dcomm: the handler of the end of rank %d failed\n", rank);
  }
}

Liveness::Liveness(std::shared_ptr<Mesh> mesh, OnExit on_exit, OnPacket on_packet) : state_(std::make_unique<State>()) {
  install_fork_guard();
  state_->mesh = std::move(mesh);
  state_->on_exit = std::move(on_exit);
  state_->on_packet = std::move(on_packet);
  state_->generation = fork_generation();
  state_->wake = GuardedFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!state_->wake) throw_errno(ErrorCode::kInternal, "eventfd for the liveness thread (raise ulimit -n?)", errno);
  const BlockedSignals blocked;  // inherited by the new thread
  try {
    state_->watcher = std::thread([state = state_.get()] { state->watch(); });
  } catch (const std::system_error& error) {
    throw_errno(ErrorCode::kInternal, "cannot start the liveness thread (raise ulimit -u?)", error.code().value());
  }
}

Liveness::~Liveness() {
  if (state_->generation != fork_generation()) {
    // The thread does not exist in a forked child: its handle can be neither joined nor destroyed.
    static_cast<void>(state_.release());
    return;
  }
  say_goodbye();
  state_->stop.store(true, std::memory_order_release);
  const uint64_t one = 1;
  // Cannot fail: a fresh eventfd has room for 2^64 - 2 of them, and this is the only write.
  static_cast<void>(!::write(state_->wake.get(), &one, sizeof one));
  state_->watcher.join();
}

void Liveness::say_goodbye(GoodbyeKind kind) {
  if (state_->generation != fork_generation()) return;
  if (state_->goodbye_said.exchange(true, std::memory_order_relaxed)) return;
  PacketHeader goodbye;
  goodbye.type = PacketType::kGoodbye;
  goodbye.kind = static_cast<uint32_t>(kind);
  for (int rank = 0; rank < state_->mesh->world_size(); ++rank) {
    const int socket = state_->mesh->peer(rank).socket;
    if (socket < 0) continue;
    failpoint("before_goodbye");
    send_packet(socket, &goodbye, sizeof goodbye);  // never waits
    failpoint("saying_goodbye");
  }
}

}  // namespace dcomm
