// The ranks of one host, fully connected by Unix sockets. Floor: comm.
//
// Set-up only: descriptors of windows and small blobs pass over it; data never does. The sockets stay
// open so that a peer's death is seen at first hand (liveness.h).
#pragma once

#include <sys/types.h>
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace dcomm {

using Token = std::array<uint8_t, 16>;
inline constexpr uint32_t kWireProtocolVersion = 1;  // of hello and window layout, not of the package

struct MeshOptions {
  int rank = 0;
  int world_size = 1;
  /// Key of the meeting point: either the hex token published by rank 0 through a store (exact = true), or
  /// a text of uid, MASTER_ADDR, MASTER_PORT, run id, restart count, DCOMM_JOB_ID, group and init counter
  /// (exact = false: it is hashed, and names .0 to .15 are tried).
  std::string meeting_key;
  bool exact = false;
  uint64_t init_counter = 0;
  uint64_t config_hash = 0;                          // must be equal on all ranks
  std::string package_version;                       // named in VersionMismatchError
  uint32_t protocol_version = kWireProtocolVersion;  // another one only in tests
  std::chrono::nanoseconds timeout = std::chrono::seconds(300);
  /// Called by the waiting thread about every 50 ms of every wait; may throw to give up (Ctrl-C). The
  /// peers then raise kPeerLost.
  std::function<void()> on_wait;
  /// Whoever started this rank, to tell two jobs with one key apart (meeting.h); 0: the parent process.
  uint64_t launcher_id = 0;
};

class Mesh {
 public:
  struct Peer {
    int socket = -1;
    int pidfd = -1;  // -1: not available; the socket's hang-up is then the only sign
    pid_t pid = 0;
  };

  /// Blocks until every pair is connected and all ranks have acknowledged, or throws: kTimeout naming the
  /// missing ranks, kVersionMismatch naming rank -> version on all ranks, kInvalidArgument (world_size or
  /// config differs, two processes claim one rank, another job holds this meeting point; set DCOMM_JOB_ID).
  static std::unique_ptr<Mesh> connect(const MeshOptions& options);
  ~Mesh();
  Mesh(const Mesh&) = delete;
  Mesh& operator=(const Mesh&) = delete;

  int rank() const;
  int world_size() const;
  const Token& token() const;  // 128 random bits of rank 0: the job's identity
  const Peer& peer(int rank) const;

  /// Collective over the mesh, set-up time only (before liveness starts reading the sockets).
  std::vector<std::vector<uint8_t>> all_gather(const std::vector<uint8_t>& own);
  std::vector<uint8_t> broadcast_from_zero(const std::vector<uint8_t>& own);
  std::vector<int> exchange_descriptors(int own_descriptor);
  void barrier();

 private:
  Mesh();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dcomm
