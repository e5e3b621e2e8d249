// Who is still there: one thread per process group that watches pidfds and sockets. Floor: comm.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "comm/mesh.h"
#include "comm/packet.h"
#include "comm/unix_socket.h"

namespace dcomm {

enum class PeerExit {
  kDied,   // the process ended without a goodbye (killed, crashed, exited without close)
  kLeft,   // goodbye received: it closed its communicator
  kExits,  // goodbye received: its process ends, and it did not close
};

/// What a peer sends after set-up beside its goodbye.
struct PeerPacket {
  PacketType type = PacketType::kWindow;
  uint64_t id = 0;
  GuardedFd descriptor;
};

class Liveness {
 public:
  /// Called from the watcher thread, at most once per peer. Must not block and must not call Python.
  using OnExit = std::function<void(int rank, PeerExit how)>;

  /// As OnExit, for every kWindow, kMemberGoodbye and kStop; those of a peer come before its end.
  using OnPacket = std::function<void(int rank, PeerPacket packet)>;

  Liveness(std::shared_ptr<Mesh> mesh, OnExit on_exit, OnPacket on_packet = {});
  ~Liveness();  // says goodbye to the peers and joins the thread; does nothing in a forked child

  /// Tells all peers that this rank leaves on purpose, or that its process exits; the first one counts.
  void say_goodbye(GoodbyeKind kind = GoodbyeKind::kClosed);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dcomm
