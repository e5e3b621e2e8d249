// Collectives of set-up: send to all, receive from all or from one. Floor: comm.
#include "comm/exchange.h"

#include <sys/socket.h>
#include <algorithm>
#include <cstring>

#include "base/failpoint.h"

namespace dcomm {
namespace {

constexpr std::chrono::milliseconds kTryLaterPeriod{1};
constexpr int kMostPacketsRead = 256;  // in search of an abort; a longest message has 64
constexpr int kEndMs = 50;             // a process hangs up a little before it has ended

const char* kind_name(ExchangeKind kind) {
  switch (kind) {
    case ExchangeKind::kAllGather:
      return "all_gather";
    case ExchangeKind::kBroadcast:
      return "broadcast";
    case ExchangeKind::kDescriptors:
      return "exchange of descriptors";
    case ExchangeKind::kBarrier:
      return "barrier";
  }
  return "unknown collective";
}

[[noreturn]] void throw_reported(const PacketHeader& header, const uint8_t* text, size_t nbytes) {
  const bool known = header.kind > 0 && header.kind <= static_cast<uint32_t>(ErrorCode::kInternal);
  throw Error(unpack_error(known ? static_cast<ErrorCode>(header.kind) : ErrorCode::kPeerLost,
                           {reinterpret_cast<const char*>(text), nbytes}));
}

/// Whoever has hung up and whose process has ended; else `suspect`. A rank that fails because of another one's death
/// hangs up as well, and not everybody has a socket yet to hear why.
NamedRanks who_ended(int suspect, const std::vector<GuardedFd>& sockets) {
  struct Gone {
    NamedRank named;
    GuardedFd process;
  };
  std::vector<Gone> gone;
  std::vector<pollfd> ends;
  for (size_t rank = 0; rank < sockets.size(); ++rank) {
    pollfd hung_up{sockets[rank].get(), POLLRDHUP, 0};
    PeerIdentity identity;
    if (!sockets[rank] || ::poll(&hung_up, 1, 0) <= 0 || !identify_peer(sockets[rank].get(), &identity)) continue;
    gone.push_back({{static_cast<int>(rank), identity.pid}, open_pidfd(sockets[rank].get(), identity.pid)});
    ends.push_back({gone.back().process.get(), POLLIN, 0});
  }
  if (!ends.empty()) ::poll(ends.data(), ends.size(), kEndMs);
  NamedRanks ended;
  for (size_t i = 0; i < gone.size(); ++i) {
    if (ends[i].revents != 0) ended.push_back(gone[i].named);
  }
  return ended.empty() ? NamedRanks{{suspect}} : ended;
}

/// "rank 0 (pid 71) and rank 2 (pid 73)"; a pid that is not known is left out.
std::string describe(const NamedRanks& ranks) {
  std::string text;
  for (const NamedRank& one : ranks) {
    text += (text.empty() ? "rank " : " and rank ") + std::to_string(one.rank);
    if (one.pid > 0) text += " (pid " + std::to_string(one.pid) + ")";
  }
  return text;
}

class Exchange {
 public:
  Exchange(int own_rank, const std::vector<GuardedFd>& sockets, ExchangeRequest request, Waiter& waiter)
      : sockets_(sockets),
        request_(std::move(request)),
        waiter_(waiter),
        flows_(sockets.size()),
        buffer_(kMaxPacketBytes) {
    result_.payloads.resize(sockets.size());
    result_.descriptors.resize(sockets.size());
    for (int rank = 0; rank < static_cast<int>(flows_.size()); ++rank) {
      const bool is_peer = rank != own_rank;
      const int source = request_.receives_from;
      flow(rank).sent = !is_peer || !request_.sends;
      flow(rank).received = !is_peer || (source != ExchangeRequest::kEveryone && source != rank);
    }
  }

  ExchangeResult run(int own_rank) {
    while (!finished()) {
      step();
    }
    result_.payloads[static_cast<size_t>(own_rank)] = std::move(request_.payload);
    return std::move(result_);
  }

 private:
  struct Flow {
    size_t sent_bytes = 0;
    bool sent = false;
    bool received = false;
    bool try_later = false;
  };

  Flow& flow(int rank) { return flows_[static_cast<size_t>(rank)]; }
  int socket(int rank) const { return sockets_[static_cast<size_t>(rank)].get(); }
  bool finished() const {
    return std::all_of(flows_.begin(), flows_.end(), [](const Flow& f) { return f.sent && f.received; });
  }

  void step() {
    std::vector<pollfd> wanted;
    bool try_later = false;
    for (int rank = 0; rank < static_cast<int>(flows_.size()); ++rank) {
      send_more(rank);
      receive_more(rank);
      // Who has all and has given all may leave: its hang-up is no failure of this collective.
      const Flow& state = flow(rank);
      if (state.sent && state.received) continue;
      int events = state.received ? POLLRDHUP : POLLIN;
      if (!state.sent && !state.try_later) events |= POLLOUT;
      try_later = try_later || state.try_later;
      wanted.push_back({socket(rank), static_cast<short>(events), 0});
    }
    if (finished()) return;
    const bool ready = waiter_.wait(wanted, try_later ? Clock::now() + kTryLaterPeriod : waiter_.deadline());
    if (!ready && waiter_.expired()) throw_timeout();
  }

  void send_more(int rank) {
    Flow& state = flow(rank);
    const std::vector<uint8_t>& payload = request_.payload;
    state.try_later = false;
    while (!state.sent) {
      const size_t nbytes = std::min(kSocketPayloadBytes, payload.size() - state.sent_bytes);
      PacketHeader header;
      header.kind = static_cast<uint32_t>(request_.kind);
      header.sequence = request_.sequence;
      header.total_bytes = static_cast<uint32_t>(payload.size());
      header.offset = static_cast<uint32_t>(state.sent_bytes);
      std::memcpy(buffer_.data(), &header, sizeof header);
      std::copy_n(payload.begin() + static_cast<std::ptrdiff_t>(state.sent_bytes), nbytes,
                  buffer_.begin() + sizeof header);
      const int descriptor = state.sent_bytes == 0 ? request_.descriptor : -1;
      const IoStatus status = send_packet(socket(rank), buffer_.data(), sizeof header + nbytes, descriptor);
      if (status == IoStatus::kClosed) throw_peer_lost(rank, sockets_, "ended during set-up");
      state.try_later = status == IoStatus::kTryLater;
      if (status != IoStatus::kDone) return;
      failpoint(descriptor >= 0 ? "window_sent" : "set_up_sent");
      state.sent_bytes += nbytes;
      state.sent = state.sent_bytes == payload.size();
    }
  }

  void receive_more(int rank) {
    while (!flow(rank).received) {
      size_t nbytes = 0;
      const bool wants_descriptor = request_.kind == ExchangeKind::kDescriptors;
      GuardedFd descriptor;
      const IoStatus status = receive_packet(socket(rank), buffer_.data(), buffer_.size(), &nbytes,
                                             wants_descriptor ? &descriptor : nullptr);
      if (status == IoStatus::kWouldBlock) return;
      if (status == IoStatus::kClosed) throw_peer_lost(rank, sockets_, "ended during set-up");
      const auto header = status == IoStatus::kDone ? decode_header(buffer_.data(), nbytes) : std::nullopt;
      if (!header) throw_peer_lost(rank, sockets_, "sent an unknown packet during set-up");
      take(rank, *header, nbytes - sizeof *header);
      if (wants_descriptor) keep_descriptor(rank, std::move(descriptor));
    }
  }

  void take(int rank, const PacketHeader& header, size_t nbytes) {
    const uint8_t* data = buffer_.data() + sizeof header;
    if (header.type == PacketType::kAbort) throw_reported(header, data, nbytes);
    if (header.type == PacketType::kGoodbye) throw_peer_lost(rank, sockets_, "closed its communicator during set-up");
    if (header.type != PacketType::kData) throw_peer_lost(rank, sockets_, "sent an unknown packet during set-up");
    DCOMM_CHECK(header.kind == static_cast<uint32_t>(request_.kind) && header.sequence == request_.sequence,
                ErrorCode::kInternal, "rank ", rank, " is in step ", header.sequence, " of set-up (",
                kind_name(static_cast<ExchangeKind>(header.kind)), "), this rank in step ", request_.sequence, " (",
                kind_name(request_.kind), ")");
    std::vector<uint8_t>& payload = result_.payloads[static_cast<size_t>(rank)];
    const bool empty_packet = nbytes == 0 && header.total_bytes != 0;
    if (header.offset != payload.size() || empty_packet) {
      throw_peer_lost(rank, sockets_, "sent a packet out of order during set-up");
    }
    payload.insert(payload.end(), data, data + nbytes);
    flow(rank).received = payload.size() == header.total_bytes;
  }

  void keep_descriptor(int rank, GuardedFd descriptor) {
    DCOMM_CHECK(descriptor, ErrorCode::kSharedMemory, "the descriptor of rank ", rank,
                " could not be received; this process has probably run out of descriptors, raise ulimit -n");
    result_.descriptors[static_cast<size_t>(rank)] = std::move(descriptor);
  }

  [[noreturn]] void throw_timeout() const {
    std::vector<int> silent;
    for (size_t rank = 0; rank < flows_.size(); ++rank) {
      if (!flows_[rank].sent || !flows_[rank].received) silent.push_back(static_cast<int>(rank));
    }
    throw Error(ErrorCode::kTimeout,
                rank_list(silent) + " did not answer within " + waiter_.timeout_text() + " in the " +
                    kind_name(request_.kind) + " of set-up; see their output, or whether they are stopped",
                named_ranks(silent));
  }

  const std::vector<GuardedFd>& sockets_;
  ExchangeRequest request_;
  Waiter& waiter_;
  std::vector<Flow> flows_;
  std::vector<uint8_t> buffer_;
  ExchangeResult result_;
};

}  // namespace

ExchangeResult run_exchange(int own_rank, const std::vector<GuardedFd>& sockets, ExchangeRequest request,
                            Waiter& waiter) {
  DCOMM_CHECK(request.payload.size() <= kMaxMessageBytes, ErrorCode::kInvalidArgument, "a message of set-up has ",
              request.payload.size(), " bytes, expected at most ", kMaxMessageBytes);
  return Exchange(own_rank, sockets, std::move(request), waiter).run(own_rank);
}

void send_abort(const std::vector<GuardedFd>& sockets, const Error& error) {
  PacketHeader header;
  header.type = PacketType::kAbort;
  header.kind = static_cast<uint32_t>(error.code());
  const std::string text = pack_error(error.what(), error.ranks());
  const size_t nbytes = std::min(text.size(), kSocketPayloadBytes);
  header.total_bytes = static_cast<uint32_t>(nbytes);
  std::vector<uint8_t> packet(sizeof header + nbytes);
  std::memcpy(packet.data(), &header, sizeof header);
  std::copy_n(text.begin(), nbytes, packet.begin() + sizeof header);
  for (const GuardedFd& socket : sockets) {
    if (socket) send_packet(socket.get(), packet.data(), packet.size());
  }
}

void throw_peer_lost(int rank, const std::vector<GuardedFd>& sockets, const std::string& what) {
  std::vector<uint8_t> buffer(kMaxPacketBytes);
  for (const GuardedFd& socket : sockets) {
    size_t nbytes = 0;
    for (int i = 0; i < kMostPacketsRead && socket; ++i) {
      if (receive_packet(socket.get(), buffer.data(), buffer.size(), &nbytes) != IoStatus::kDone) break;
      const auto header = decode_header(buffer.data(), nbytes);
      if (header && header->type == PacketType::kAbort) {
        throw_reported(*header, buffer.data() + sizeof *header, nbytes - sizeof *header);
      }
    }
  }
  const NamedRanks ended = who_ended(rank, sockets);
  throw Error(ErrorCode::kPeerLost, describe(ended) + " " + what + "; see its own output for the reason", ended);
}

}  // namespace dcomm
