// The sockets of a mesh and the thread that watches them, shared by a communicator and all that are split from it.
// Floor: comm.
//
// Every communicator is a membership with an id of its own. To close one says goodbye to its members alone; the last
// one of a process stops the watcher. A process that dies is gone from all its memberships.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "comm/liveness.h"
#include "comm/mesh.h"
#include "protocol/control.h"

namespace dcomm {

class SharedMesh {
 public:
  struct Membership {
    std::vector<int> mesh_ranks;  // of its members, in their order
    /// Called in the watcher's thread, at most once per member. Must not block.
    std::function<void(int member, AbortDetail how)> on_exit;
    /// The same, for tell_stop() of a member.
    std::function<void(int member)> on_stop = {};
  };

  explicit SharedMesh(std::shared_ptr<Mesh> mesh);
  ~SharedMesh();
  SharedMesh(const SharedMesh&) = delete;
  SharedMesh& operator=(const SharedMesh&) = delete;

  const Mesh::Peer& peer(int mesh_rank) const { return mesh_->peer(mesh_rank); }
  int own_rank() const { return mesh_->rank(); }

  /// Members that are gone already are reported before it returns.
  void join(uint64_t id, Membership membership);
  /// After it on_exit is not called any more. Nothing for an id that is not there. kExits: from all memberships, as the
  /// peers see it.
  void leave(uint64_t id, GoodbyeKind kind = GoodbyeKind::kClosed);

  /// Tells the other members that this rank has aborted. Any thread; waits a moment at most.
  void tell_stop(uint64_t id);

  /// From here on windows for communicator `id` are kept; all members have called it before one of them sends.
  void expect_windows(uint64_t id);
  /// Gives `descriptor` to the other members and returns theirs, which the caller owns, in the order of mesh_ranks (own
  /// entry -1). on_wait(member) is called about every 10 ms with a member that has not sent yet, and throws to give up.
  std::vector<int> exchange_windows(uint64_t id, const std::vector<int>& mesh_ranks, int descriptor,
                                    const std::function<void(int member)>& on_wait);
  /// Closes what has come and was not fetched.
  void forget_windows(uint64_t id);

 private:
  void take_packet(int mesh_rank, PeerPacket packet);
  void note_exit(int mesh_rank, AbortDetail how);
  static void report(Membership& membership, int mesh_rank, AbortDetail how);
  void send_to(int mesh_rank, PacketType type, uint64_t id, int descriptor, const std::function<void()>& on_wait);

  std::shared_ptr<Mesh> mesh_;
  std::mutex mutex_;
  std::condition_variable window_came_;
  std::map<uint64_t, Membership> memberships_;
  std::map<uint64_t, std::map<int, GuardedFd>> windows_;  // by communicator and mesh rank
  std::vector<AbortDetail> exits_;                        // by mesh rank
  std::unique_ptr<Liveness> liveness_;
};

}  // namespace dcomm
