// Rank 0's side of the meeting. Floor: comm. The rules are told in meeting.h.
//
// One poll loop over the door, visitors (connected, hello not yet read), guests (seated ranks) and strays
// (ranks that do not fit our world_size). Rivals, rank 0s of other jobs, wait for the outcome unpolled.
#include <sys/socket.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "base/failpoint.h"
#include "comm/meeting.h"

namespace dcomm {
namespace {

constexpr std::chrono::seconds kVerdictGrace{1};  // a mismatch waits for the other ranks
constexpr std::chrono::seconds kHelloTime{2};
constexpr std::chrono::milliseconds kStatusPeriod{100};
constexpr size_t kMaxVisitors = 64;  // silent connections of our own user cannot use up our descriptors
constexpr size_t kMaxStrays = 64;

ReplyKind reply_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kVersionMismatch:
      return ReplyKind::kVersionMismatch;
    case ErrorCode::kInvalidArgument:
      return ReplyKind::kInvalidArgument;
    case ErrorCode::kTimeout:
      return ReplyKind::kTimeout;
    default:
      return ReplyKind::kPeerLost;
  }
}

void reply(const GuardedFd& socket, ReplyKind kind, const std::string& text) {
  const auto packet = encode_reply(kind, text);
  send_packet(socket.get(), packet.data(), packet.size());  // best effort: it may be gone
}

class Host {
 public:
  Host(const MeshOptions& options, const Hello& own, Waiter& waiter)
      : options_(options), own_(own), waiter_(waiter), guests_(static_cast<size_t>(options.world_size)) {}

  Meeting run() {
    meeting_.door = open_door(options_, own_, waiter_);
    try {
      while (!settled()) serve_once();
    } catch (const Error& error) {
      tell_all(reply_of(error.code()), pack_error(error.what(), error.ranks()));
      throw;
    } catch (...) {
      tell_all(ReplyKind::kPeerLost, pack_error("rank 0 was interrupted during set-up", {{0, ::getpid()}}));
      throw;
    }
    return welcome_all();
  }

 private:
  struct Visitor {
    GuardedFd socket;
    pid_t pid = 0;
    Clock::time_point until;
    bool gone = false;
  };
  struct Guest {
    GuardedFd socket;
    pid_t pid = 0;
    Hello hello;
  };

  /// True when the table is a group. Throws the verdict when it cannot become one.
  bool settled() {
    const std::vector<int> missing = missing_ranks();
    const bool differs = !difference().empty();
    const bool late = waiter_.expired();
    if (late || (missing.empty() && one_launcher())) throw_if_different();
    if (missing.empty() && (late || one_launcher())) return true;
    if (late) {
      throw Error(ErrorCode::kTimeout, missing_text(options_, rank_list(missing), "within " + waiter_.timeout_text()),
                  named_ranks(missing));
    }
    if (!missing.empty() && !differs) {
      verdict_at_.reset();
      return false;
    }
    if (!verdict_at_) verdict_at_ = Clock::now() + kVerdictGrace;
    if (Clock::now() < *verdict_at_) return false;
    throw_if_different();
    return true;
  }

  void throw_if_different() const {
    bool of_versions = false;
    const std::string text = difference(&of_versions);
    if (text.empty()) return;
    throw Error(of_versions ? ErrorCode::kVersionMismatch : ErrorCode::kInvalidArgument, text);
  }

  void serve_once() {
    std::vector<pollfd> wanted{{meeting_.door.get(), POLLIN, 0}};
    Clock::time_point until = verdict_at_.value_or(waiter_.deadline());
    if (status_due_) until = std::min(until, *status_due_);
    for (const Visitor& visitor : visitors_) {
      wanted.push_back({visitor.socket.get(), POLLIN, 0});
      until = std::min(until, visitor.until);
    }
    for (const Guest& guest : guests_) wanted.push_back({guest.socket.get(), POLLIN, 0});  // -1 is ignored
    const size_t first_guest = 1 + visitors_.size();
    if (waiter_.wait(wanted, until)) {
      // The seated first: a rank that died and was started again finds its death reported, not its seat
      // taken.
      for (size_t rank = 1; rank < guests_.size(); ++rank) {
        if (wanted[first_guest + rank].revents != 0) hear_guest(static_cast<int>(rank));
      }
      if (wanted[0].revents != 0) accept_visitors();
    }
    hear_visitors();
    send_status();
  }

  void accept_visitors() {
    // Bounded, so that a flood of connections cannot keep us from the deadline.
    for (size_t i = 0; i < kMaxVisitors; ++i) {
      GuardedFd socket = accept_connection(meeting_.door.get());
      if (!socket) return;
      PeerIdentity identity;
      if (!identify_peer(socket.get(), &identity) || !is_own_user(identity)) {
        warn_rate_limited("refused a connection of user " + std::to_string(identity.uid) + " to the meeting point");
        continue;
      }
      if (visitors_.size() >= kMaxVisitors) visitors_.erase(visitors_.begin());  // the oldest; a rank tries again
      visitors_.push_back({std::move(socket), identity.pid, Clock::now() + kHelloTime});
    }
  }

  void hear_visitors() {
    for (Visitor& visitor : visitors_) hear_visitor(visitor);
    visitors_.erase(std::remove_if(visitors_.begin(), visitors_.end(), [](const Visitor& v) { return v.gone; }),
                    visitors_.end());
  }

  void hear_visitor(Visitor& visitor) {
    HelloBytes bytes;
    size_t nbytes = 0;
    const IoStatus status = receive_packet(visitor.socket.get(), bytes.data(), bytes.size(), &nbytes);
    if (status == IoStatus::kWouldBlock) {
      visitor.gone = Clock::now() >= visitor.until;
      return;
    }
    visitor.gone = true;
    if (status == IoStatus::kClosed) return;
    const auto hello = status == IoStatus::kDone ? decode_hello(bytes.data(), nbytes) : std::nullopt;
    if (hello && hello->token == own_.token) return seat(std::move(visitor.socket), visitor.pid, *hello);
    warn_rate_limited("dropped a connection of process " + std::to_string(visitor.pid) +
                      " to the meeting point: its hello is garbled");
  }

  void seat(GuardedFd socket, pid_t pid, const Hello& hello) {
    if (hello.rank == 0) return note_rival(std::move(socket), hello);
    if (is_rival(hello.launcher)) return refuse(socket, "this meeting point belongs to a job of another launcher");
    if (hello.rank >= options_.world_size) {
      if (strays_.size() < kMaxStrays) strays_.push_back({std::move(socket), pid, hello});
      return;
    }
    Guest& guest = guests_[static_cast<size_t>(hello.rank)];
    if (guest.socket) {
      const std::string taken = "rank " + std::to_string(hello.rank) + " already joined";
      const bool better = !options_.exact && is_ours(hello) && !is_ours(guest.hello);
      refuse(better ? guest.socket : socket, taken + " as process " + std::to_string(better ? pid : guest.pid));
      if (!better) return;
    }
    guest = {std::move(socket), pid, hello};
    failpoint("seating");
    reply(guest.socket, ReplyKind::kStatus, missing_status());
    status_due_ = status_due_.value_or(Clock::now() + kStatusPeriod);
  }

  void note_rival(GuardedFd socket, const Hello& hello) {
    if (!options_.exact && !is_ours(hello)) {
      rival_launchers_.push_back(hello.launcher);
      for (Guest& guest : guests_) {
        if (!guest.socket || guest.hello.launcher != hello.launcher) continue;
        refuse(guest.socket, "this meeting point belongs to a job of another launcher");
        guest = {};
      }
    }
    if (meeting_.rivals.size() >= kMaxVisitors) return refuse(socket, "rank 0 already joined");
    meeting_.rivals.push_back(std::move(socket));
  }

  void refuse(const GuardedFd& socket, const std::string& why) const {
    reply(socket, ReplyKind::kInvalidArgument, other_job_text(options_, why));
  }

  /// A seated rank has nothing to say but that it gives up; anything else is its end.
  void hear_guest(int rank) {
    Guest& guest = guests_[static_cast<size_t>(rank)];
    std::vector<uint8_t> buffer(kMaxReplyBytes);
    size_t nbytes = 0;
    const IoStatus status = receive_packet(guest.socket.get(), buffer.data(), buffer.size(), &nbytes);
    if (status == IoStatus::kWouldBlock) return;
    const auto packet = status == IoStatus::kDone ? decode_reply(buffer.data(), nbytes) : std::nullopt;
    if (packet && packet->kind == ReplyKind::kGaveUp) {
      const std::string when = "before rank " + std::to_string(rank) + " gave up (its timeout has passed)";
      const std::vector<int> missing = missing_ranks();
      throw Error(ErrorCode::kTimeout, missing_text(options_, rank_list(missing), when), named_ranks(missing));
    }
    const pid_t pid = guest.pid;
    guest = {};
    throw Error(ErrorCode::kPeerLost,
                "rank " + std::to_string(rank) + " (pid " + std::to_string(pid) +
                    ") ended during set-up; see its own output for the reason",
                {{rank, pid}});
  }

  void send_status() {
    if (!status_due_ || Clock::now() < *status_due_) return;
    const std::string text = missing_status();
    if (text != last_status_) {
      for (const Guest& guest : guests_) {
        if (guest.socket) reply(guest.socket, ReplyKind::kStatus, text);
      }
    }
    last_status_ = text;
    status_due_.reset();
  }

  void tell_all(ReplyKind kind, const std::string& text) const {
    for (const Guest& guest : guests_) {
      if (guest.socket) reply(guest.socket, kind, text);
    }
    for (const Guest& stray : strays_) reply(stray.socket, kind, text);
  }

  Meeting welcome_all() {
    fill_random(meeting_.token.data(), meeting_.token.size());
    guests_[0].hello = own_;
    std::vector<uint8_t> body(meeting_.token.begin(), meeting_.token.end());
    for (Guest& guest : guests_) {
      body.insert(body.end(), guest.hello.listener.begin(), guest.hello.listener.end());
      meeting_.listeners.push_back(guest.hello.listener);
      meeting_.sockets.push_back(std::move(guest.socket));
    }
    // Who has not said hello yet comes too late; close_meeting() tells them.
    for (Visitor& visitor : visitors_) meeting_.rivals.push_back(std::move(visitor.socket));
    const auto packet = encode_reply(ReplyKind::kWelcome, body);
    for (const GuardedFd& socket : meeting_.sockets) {
      if (socket) send_packet(socket.get(), packet.data(), packet.size());  // a failure shows in the first barrier
      if (socket) failpoint("welcoming");
    }
    return std::move(meeting_);
  }

  std::vector<int> missing_ranks() const {
    std::vector<int> missing;
    for (int rank = 1; rank < options_.world_size; ++rank) {
      if (!guests_[static_cast<size_t>(rank)].socket) missing.push_back(rank);
    }
    return missing;
  }

  /// What the seated are told of those that are not.
  std::string missing_status() const {
    const std::vector<int> missing = missing_ranks();
    return pack_error(rank_list(missing), named_ranks(missing));
  }

  bool is_ours(const Hello& hello) const {
    return hello.launcher == own_.launcher || (hello.launcher == self_ && self_ != 0);
  }
  bool is_rival(uint64_t launcher) const {
    return std::find(rival_launchers_.begin(), rival_launchers_.end(), launcher) != rival_launchers_.end();
  }
  bool one_launcher() const {
    const auto ours = [this](const Guest& guest) { return is_ours(guest.hello); };
    return options_.exact || std::all_of(guests_.begin() + 1, guests_.end(), ours);
  }

  /// Why the ranks that are here cannot be one group; empty when they can.
  std::string difference(bool* of_versions = nullptr) const {
    std::vector<const Hello*> hellos{&own_};
    for (const Guest& guest : guests_) {
      if (guest.socket) hellos.push_back(&guest.hello);
    }
    for (const Guest& stray : strays_) hellos.push_back(&stray.hello);
    return first_difference(hellos, of_versions);
  }

  const MeshOptions& options_;
  const Hello& own_;
  const uint64_t self_ = process_identity(::getpid());  // the launcher of ranks that rank 0 has started itself
  Waiter& waiter_;
  Meeting meeting_;
  std::vector<Visitor> visitors_;
  std::vector<Guest> guests_;  // index = rank; [0] stays empty
  std::vector<Guest> strays_;
  std::vector<uint64_t> rival_launchers_;
  std::optional<Clock::time_point> verdict_at_;
  std::optional<Clock::time_point> status_due_;
  std::string last_status_;
};

}  // namespace

Meeting host_meeting(const MeshOptions& options, const Hello& own, Waiter& waiter) {
  return Host(options, own, waiter).run();
}

void close_meeting(const MeshOptions& options, Meeting* meeting) {
  const std::string text = other_job_text(options, "all ranks have already joined");
  for (const GuardedFd& rival : meeting->rivals) reply(rival, ReplyKind::kInvalidArgument, text);
  meeting->rivals.clear();
  while (meeting->door) {
    const GuardedFd late = accept_connection(meeting->door.get());
    if (!late) break;
    reply(late, ReplyKind::kInvalidArgument, text);
  }
  meeting->door.reset();
}

}  // namespace dcomm
