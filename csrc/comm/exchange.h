// One collective of set-up over the sockets of a mesh. Floor: comm.
//
// Every message goes from one rank straight to another, all pairs at once, driven by one poll loop: sending
// and receiving make progress together, so full socket buffers cannot lock two ranks up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/packet.h"
#include "comm/unix_socket.h"

namespace dcomm {

enum class ExchangeKind : uint32_t { kAllGather = 1, kBroadcast = 2, kDescriptors = 3, kBarrier = 4 };

struct ExchangeRequest {
  ExchangeKind kind = ExchangeKind::kBarrier;
  uint32_t sequence = 0;
  std::vector<uint8_t> payload;  // to every peer, at most 1 MiB
  int descriptor = -1;           // goes along with the first packet when >= 0
  bool sends = true;
  int receives_from = kEveryone;

  static constexpr int kEveryone = -1;
  static constexpr int kNobody = -2;
};

struct ExchangeResult {
  std::vector<std::vector<uint8_t>> payloads;  // index = rank; own payload included
  std::vector<GuardedFd> descriptors;          // index = rank; empty unless kDescriptors
};

/// `sockets[rank]` is the pair's socket; that of `own_rank` is empty. Throws kTimeout naming the silent
/// ranks, kPeerLost naming a dead one, or what a peer reports as its own failure.
ExchangeResult run_exchange(int own_rank, const std::vector<GuardedFd>& sockets, ExchangeRequest request,
                            Waiter& waiter);

/// Tells all peers, without waiting, that set-up has failed here; they throw the same.
void send_abort(const std::vector<GuardedFd>& sockets, const Error& error);

/// Throws the failure that some peer has reported, if any; else kPeerLost naming `rank`.
[[noreturn]] void throw_peer_lost(int rank, const std::vector<GuardedFd>& sockets, const std::string& what);

}  // namespace dcomm
