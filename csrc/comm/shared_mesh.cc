#include "comm/shared_mesh.h"

#include <chrono>
#include <cstring>
#include <thread>

#include "base/failpoint.h"
#include "comm/packet.h"
#include "comm/unix_socket.h"

namespace dcomm {

namespace {

constexpr std::chrono::milliseconds kLookPeriod{10};
constexpr std::chrono::milliseconds kTryLaterPeriod{1};
constexpr int kStopTries = 20;    // of a stop, which must not wait long; the peer's own deadline remains
constexpr int kMostTries = 1000;  // of a goodbye to a peer whose socket is full: its watcher reads all the time

}  // namespace

SharedMesh::SharedMesh(std::shared_ptr<Mesh> mesh)
    : mesh_(std::move(mesh)), exits_(static_cast<size_t>(mesh_->world_size()), AbortDetail::kNone) {
  liveness_ = std::make_unique<Liveness>(
      mesh_,
      [this](int rank, PeerExit how) {
        note_exit(rank, how == PeerExit::kLeft    ? AbortDetail::kLeft
                        : how == PeerExit::kExits ? AbortDetail::kExits
                                                  : AbortDetail::kDied);
      },
      [this](int rank, PeerPacket packet) { take_packet(rank, std::move(packet)); });
}

SharedMesh::~SharedMesh() { liveness_.reset(); }  // its thread uses the rest

void SharedMesh::report(Membership& membership, int mesh_rank, AbortDetail how) {
  for (size_t member = 0; member < membership.mesh_ranks.size(); ++member) {
    if (membership.mesh_ranks[member] != mesh_rank) continue;
    membership.on_exit(static_cast<int>(member), how);
    membership.mesh_ranks[member] = -1;  // told once: what comes first counts
  }
}

void SharedMesh::note_exit(int mesh_rank, AbortDetail how) {
  const std::lock_guard lock(mutex_);
  exits_[static_cast<size_t>(mesh_rank)] = how;
  for (auto& [id, membership] : memberships_) report(membership, mesh_rank, how);
}

void SharedMesh::take_packet(int mesh_rank, PeerPacket packet) {
  const std::lock_guard lock(mutex_);
  if (packet.type == PacketType::kMemberGoodbye) {
    const auto found = memberships_.find(packet.id);
    if (found != memberships_.end()) report(found->second, mesh_rank, AbortDetail::kLeft);
    return;
  }
  if (packet.type == PacketType::kStop) {
    const auto found = memberships_.find(packet.id);
    if (found == memberships_.end() || !found->second.on_stop) return;
    for (size_t member = 0; member < found->second.mesh_ranks.size(); ++member) {
      if (found->second.mesh_ranks[member] == mesh_rank) found->second.on_stop(static_cast<int>(member));
    }
    return;
  }
  const auto found = windows_.find(packet.id);
  if (found == windows_.end()) return;  // of a split that was given up
  found->second[mesh_rank] = std::move(packet.descriptor);
  window_came_.notify_all();
}

void SharedMesh::join(uint64_t id, Membership membership) {
  const std::lock_guard lock(mutex_);
  const auto [entry, is_new] = memberships_.emplace(id, std::move(membership));
  DCOMM_CHECK(is_new, ErrorCode::kInternal, "two communicators have the id ", id, "; report this");
  for (size_t rank = 0; rank < exits_.size(); ++rank) {
    if (exits_[rank] != AbortDetail::kNone) report(entry->second, static_cast<int>(rank), exits_[rank]);
  }
}

void SharedMesh::leave(uint64_t id, GoodbyeKind kind) {
  std::vector<int> members;
  {
    const std::lock_guard lock(mutex_);
    const auto found = memberships_.find(id);
    if (found == memberships_.end()) return;
    members = found->second.mesh_ranks;
    memberships_.erase(found);
    if (memberships_.empty()) members.clear();
  }
  if (kind == GoodbyeKind::kExits) {
    liveness_->say_goodbye(kind);  // for all memberships
    if (!members.empty()) return;
  }
  if (members.empty()) {
    liveness_.reset();  // says goodbye to all
    return;
  }
  for (const int member : members) {
    if (member < 0 || member == own_rank()) continue;
    int tries = 0;
    const auto give_up = [&] { DCOMM_CHECK(++tries < kMostTries, ErrorCode::kPeerLost, "the socket stays full"); };
    try {
      send_to(member, PacketType::kMemberGoodbye, id, -1, give_up);
      failpoint("saying_member_goodbye");
    } catch (const Error&) {
      warn_rate_limited("a process does not read its socket; it will learn by a timeout that a communicator is closed");
    }
  }
}

void SharedMesh::tell_stop(uint64_t id) {
  std::vector<int> members;
  {
    const std::lock_guard lock(mutex_);
    const auto found = memberships_.find(id);
    if (found != memberships_.end()) members = found->second.mesh_ranks;
  }
  for (const int member : members) {
    if (member < 0 || member == own_rank()) continue;
    int tries = 0;
    const auto give_up = [&] { DCOMM_CHECK(++tries < kStopTries, ErrorCode::kPeerLost, "the socket stays full"); };
    try {
      send_to(member, PacketType::kStop, id, -1, give_up);
    } catch (const Error&) {
      warn_rate_limited(
          "a process does not read its socket; it will learn by a timeout that a communicator is aborted");
    }
  }
}

/// A peer that has hung up is none of its business: the watcher tells.
void SharedMesh::send_to(int mesh_rank, PacketType type, uint64_t id, int descriptor,
                         const std::function<void()>& on_wait) {
  PacketHeader header;
  header.type = type;
  header.total_bytes = sizeof id;
  uint8_t packet[sizeof header + sizeof id];
  std::memcpy(packet, &header, sizeof header);
  std::memcpy(packet + sizeof header, &id, sizeof id);
  for (;;) {
    const IoStatus status = send_packet(peer(mesh_rank).socket, packet, sizeof packet, descriptor);
    if (status != IoStatus::kWouldBlock && status != IoStatus::kTryLater) return;
    on_wait();
    std::this_thread::sleep_for(kTryLaterPeriod);
  }
}

void SharedMesh::expect_windows(uint64_t id) {
  const std::lock_guard lock(mutex_);
  windows_[id];
}

void SharedMesh::forget_windows(uint64_t id) {
  const std::lock_guard lock(mutex_);
  windows_.erase(id);
}

std::vector<int> SharedMesh::exchange_windows(uint64_t id, const std::vector<int>& mesh_ranks, int descriptor,
                                              const std::function<void(int member)>& on_wait) {
  for (size_t member = 0; member < mesh_ranks.size(); ++member) {
    if (mesh_ranks[member] == own_rank()) continue;
    send_to(mesh_ranks[member], PacketType::kWindow, id, descriptor, [&] { on_wait(static_cast<int>(member)); });
    failpoint("split_window_sent");
  }
  std::unique_lock lock(mutex_);
  for (size_t member = 0; member < mesh_ranks.size(); ++member) {
    const int mesh_rank = mesh_ranks[member];
    while (mesh_rank != own_rank() && windows_[id].count(mesh_rank) == 0) {
      if (window_came_.wait_for(lock, kLookPeriod) == std::cv_status::no_timeout) continue;
      lock.unlock();
      on_wait(static_cast<int>(member));
      lock.lock();
    }
  }
  std::vector<int> descriptors;
  for (const int mesh_rank : mesh_ranks) {
    descriptors.push_back(mesh_rank == own_rank() ? -1 : windows_[id][mesh_rank].release());
  }
  return descriptors;
}

}  // namespace dcomm
