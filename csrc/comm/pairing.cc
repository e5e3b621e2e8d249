// Connecting every pair of ranks after the meeting. Floor: comm.
//
// All listeners have been open since before the hellos, so a connection waits for nobody; refused means that
// the other rank is gone. Whoever else finds a listener's random name shows no token and is dropped.
#include "comm/pairing.h"

#include <sys/socket.h>
#include <algorithm>
#include <cerrno>

#include "base/error.h"
#include "comm/exchange.h"

namespace dcomm {
namespace {

constexpr std::chrono::milliseconds kRetryPeriod{1};
constexpr size_t kMaxVisitors = 64;

class Pairing {
 public:
  Pairing(const MeshOptions& options, const Meeting& meeting, const GuardedFd& listener,
          std::vector<GuardedFd>* sockets, Waiter& waiter)
      : options_(options), meeting_(meeting), listener_(listener), sockets_(*sockets), waiter_(waiter) {}

  void run() {
    for (;;) {
      const bool retry = connect_to_lower_ranks();
      const std::vector<int> missing = missing_ranks();
      if (missing.empty()) return;
      if (waiter_.expired()) {
        throw Error(ErrorCode::kTimeout,
                    rank_list(missing) + " did not connect within " + waiter_.timeout_text() +
                        " after the meeting; see their output, or whether they are stopped",
                    named_ranks(missing));
      }
      wait_for_higher_ranks(retry ? Clock::now() + kRetryPeriod : waiter_.deadline());
    }
  }

 private:
  GuardedFd& pair(int rank) { return sockets_[static_cast<size_t>(rank)]; }

  std::vector<int> missing_ranks() {
    std::vector<int> missing;
    for (int rank = 0; rank < options_.world_size; ++rank) {
      if (rank != options_.rank && !pair(rank)) missing.push_back(rank);
    }
    return missing;
  }

  /// True when a listener's backlog was full and must be tried again.
  bool connect_to_lower_ranks() {
    bool retry = false;
    for (int rank = 1; rank < options_.rank; ++rank) {
      if (pair(rank)) continue;
      GuardedFd socket = connect_abstract(listener_name(meeting_.listeners[static_cast<size_t>(rank)]));
      if (!socket && errno == EAGAIN) {
        retry = true;
        continue;
      }
      PeerIdentity identity;
      const auto hello = encode_pair_hello({meeting_.token, options_.rank});
      if (!socket || !identify_peer(socket.get(), &identity) || !is_own_user(identity) ||
          send_packet(socket.get(), hello.data(), hello.size()) != IoStatus::kDone) {
        throw_peer_lost(rank, sockets_, "ended during set-up");
      }
      pair(rank) = std::move(socket);
    }
    return retry;
  }

  void wait_for_higher_ranks(Clock::time_point until) {
    std::vector<pollfd> wanted{{listener_.get(), POLLIN, 0}};
    for (const GuardedFd& visitor : visitors_) wanted.push_back({visitor.get(), POLLIN, 0});
    const size_t first_pair = wanted.size();
    // What a pair sends belongs to the first barrier; only its hang-up matters here.
    for (const GuardedFd& socket : sockets_) wanted.push_back({socket.get(), POLLRDHUP, 0});
    if (!waiter_.wait(wanted, until)) return;
    for (int rank = 0; rank < options_.world_size; ++rank) {
      if (wanted[first_pair + static_cast<size_t>(rank)].revents != 0) {
        throw_peer_lost(rank, sockets_, "ended during set-up");
      }
    }
    accept_visitors();
    visitors_.erase(std::remove_if(visitors_.begin(), visitors_.end(),
                                   [this](GuardedFd& visitor) { return hear_visitor(visitor); }),
                    visitors_.end());
  }

  void accept_visitors() {
    for (size_t i = 0; i < kMaxVisitors; ++i) {
      GuardedFd socket = accept_connection(listener_.get());
      if (!socket) return;
      PeerIdentity identity;
      if (!identify_peer(socket.get(), &identity) || !is_own_user(identity)) {
        warn_rate_limited("refused a connection of user " + std::to_string(identity.uid) + " to a rank's listener");
        continue;
      }
      visitors_.push_back(std::move(socket));
    }
  }

  /// True when this visitor is done with: paired or dropped.
  bool hear_visitor(GuardedFd& visitor) {
    std::array<uint8_t, kPairHelloBytes> bytes;
    size_t nbytes = 0;
    const IoStatus status = receive_packet(visitor.get(), bytes.data(), bytes.size(), &nbytes);
    if (status == IoStatus::kWouldBlock) return false;
    const auto hello = status == IoStatus::kDone ? decode_pair_hello(bytes.data(), nbytes) : std::nullopt;
    const bool valid = hello && hello->token == meeting_.token && hello->rank > options_.rank &&
                       hello->rank < options_.world_size && !pair(hello->rank);
    if (valid) {
      pair(hello->rank) = std::move(visitor);
    } else if (status != IoStatus::kClosed) {
      warn_rate_limited("dropped a connection to a rank's listener: it showed no token of this job");
    }
    return true;
  }

  const MeshOptions& options_;
  const Meeting& meeting_;
  const GuardedFd& listener_;
  std::vector<GuardedFd>& sockets_;
  Waiter& waiter_;
  std::vector<GuardedFd> visitors_;
};

}  // namespace

void pair_with_all(const MeshOptions& options, Meeting* meeting, const GuardedFd& listener,
                   std::vector<GuardedFd>* sockets, Waiter& waiter) {
  if (options.rank == 0) {
    *sockets = std::move(meeting->sockets);
    return;
  }
  sockets->resize(static_cast<size_t>(options.world_size));
  sockets->front() = std::move(meeting->sockets.front());
  Pairing(options, *meeting, listener, sockets, waiter).run();
}

}  // namespace dcomm
