// Names of a meeting point, and joining one as a rank other than 0. Floor: comm.
#include "comm/meeting.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "base/failpoint.h"

namespace dcomm {
namespace {

constexpr int kNumHashedNames = 16;
constexpr std::chrono::milliseconds kFirstBackoff{1};
constexpr std::chrono::milliseconds kLongestBackoff{20};

/// FNV-1a, finished with the mixer of splitmix64 so that similar keys differ in all bits.
uint64_t hash_text(const std::string& text, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325ULL ^ seed;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ULL;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9ULL;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebULL;
  return hash ^ (hash >> 31);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

ErrorCode code_of(ReplyKind kind) {
  switch (kind) {
    case ReplyKind::kVersionMismatch:
      return ErrorCode::kVersionMismatch;
    case ReplyKind::kInvalidArgument:
      return ErrorCode::kInvalidArgument;
    case ReplyKind::kTimeout:
      return ErrorCode::kTimeout;
    default:
      return ErrorCode::kPeerLost;
  }
}

class Guest {
 public:
  Guest(const MeshOptions& options, const Hello& own, Waiter& waiter)
      : options_(options), hello_(encode_hello(own)), waiter_(waiter), buffer_(kMaxReplyBytes) {}

  Meeting run() {
    std::chrono::nanoseconds backoff = kFirstBackoff;
    while (!waiter_.expired()) {
      if (GuardedFd socket = knock(); socket && converse(socket)) {
        meeting_.sockets.push_back(std::move(socket));
        return std::move(meeting_);
      }
      waiter_.sleep_for(backoff);
      backoff = std::min<std::chrono::nanoseconds>(2 * backoff, kLongestBackoff);
    }
    throw Error(ErrorCode::kTimeout, missing_text(options_, "rank 0", "within " + waiter_.timeout_text()), {{0}});
  }

 private:
  /// A connection to the first name that a process of our user listens on.
  GuardedFd knock() {
    for (int index = 0; index < num_meeting_names(options_); ++index) {
      GuardedFd socket = connect_abstract(meeting_name(options_, index));
      PeerIdentity host;
      if (socket && identify_peer(socket.get(), &host) && is_own_user(host)) return socket;
    }
    return {};
  }

  /// True: welcomed. False: hung up before we were seated (a listener that is just closing), so try again.
  bool converse(const GuardedFd& socket) {
    failpoint("before_hello");
    if (send_packet(socket.get(), hello_.data(), hello_.size()) != IoStatus::kDone) return false;
    failpoint("after_hello");
    bool seated = false;
    Error missing(ErrorCode::kTimeout, "rank 0", {{0}});
    for (;;) {
      size_t nbytes = 0;
      const IoStatus status = receive_packet(socket.get(), buffer_.data(), buffer_.size(), &nbytes);
      if (status == IoStatus::kWouldBlock) {
        std::vector<pollfd> wanted{{socket.get(), POLLIN, 0}};
        if (!waiter_.wait(wanted)) give_up(socket, missing);
        continue;
      }
      if (status == IoStatus::kClosed) {
        if (!seated) return false;
        throw Error(ErrorCode::kPeerLost, "rank 0 ended during set-up; see its own output for the reason", {{0}});
      }
      const auto reply = status == IoStatus::kDone ? decode_reply(buffer_.data(), nbytes) : std::nullopt;
      if (!reply) {
        warn_rate_limited("dropped a meeting point that answered with an unknown packet");
        return false;
      }
      if (reply->kind == ReplyKind::kWelcome) return take_welcome(*reply);
      if (reply->kind != ReplyKind::kStatus) throw Error(unpack_error(code_of(reply->kind), reply->text()));
      seated = true;
      missing = unpack_error(ErrorCode::kTimeout, reply->text());
    }
  }

  bool take_welcome(const Reply& reply) {
    const size_t num_ranks = static_cast<size_t>(options_.world_size);
    if (reply.body.size() != sizeof(Token) * (num_ranks + 1)) return false;
    std::memcpy(meeting_.token.data(), reply.body.data(), sizeof(Token));
    meeting_.listeners.resize(num_ranks);
    for (size_t i = 0; i < num_ranks; ++i) {
      std::memcpy(meeting_.listeners[i].data(), reply.body.data() + sizeof(Token) * (i + 1), sizeof(Token));
    }
    return true;
  }

  [[noreturn]] void give_up(const GuardedFd& socket, const Error& missing) {
    // So that rank 0 reports a timeout, not a dead rank, when our deadline is the first to pass.
    const auto packet = encode_reply(ReplyKind::kGaveUp, "");
    send_packet(socket.get(), packet.data(), packet.size());
    throw Error(ErrorCode::kTimeout, missing_text(options_, missing.what(), "within " + waiter_.timeout_text()),
                missing.ranks());
  }

  const MeshOptions& options_;
  const HelloBytes hello_;
  Waiter& waiter_;
  std::vector<uint8_t> buffer_;
  Meeting meeting_;
};

}  // namespace

Meeting join_meeting(const MeshOptions& options, const Hello& own, Waiter& waiter) {
  return Guest(options, own, waiter).run();
}

int num_meeting_names(const MeshOptions& options) { return options.exact ? 1 : kNumHashedNames; }

std::string meeting_name(const MeshOptions& options, int index) {
  if (options.exact) return "dcomm-" + options.meeting_key;
  const uint64_t halves[2] = {hash_text(options.meeting_key, 0), hash_text(options.meeting_key, 0x9e3779b97f4a7c15ULL)};
  uint8_t bytes[sizeof halves];
  std::memcpy(bytes, halves, sizeof halves);
  return "dcomm-" + to_hex(bytes, sizeof bytes) + "." + std::to_string(index);
}

std::string listener_name(const Token& token) { return "dcomm-" + to_hex(token.data(), token.size()); }

Token meeting_token(const MeshOptions& options) {
  Token token{};
  if (!options.exact) return token;
  const std::string& text = options.meeting_key;
  bool valid = text.size() == 2 * token.size();
  for (size_t i = 0; valid && i < token.size(); ++i) {
    const int high = hex_digit(text[2 * i]);
    const int low = hex_digit(text[2 * i + 1]);
    valid = high >= 0 && low >= 0;
    token[i] = static_cast<uint8_t>((high << 4 | low) & 0xff);
  }
  DCOMM_CHECK(valid, ErrorCode::kInvalidArgument, "the meeting token is '", text,
              "', expected 32 lower-case hex digits as published by rank 0");
  return token;
}

uint64_t process_identity(pid_t process) {
  const std::string pid = std::to_string(process);
  const GuardedFd file(::open(("/proc/" + pid + "/stat").c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return 0;
  char text[1024];
  const ssize_t length = ::read(file.get(), text, sizeof text - 1);
  if (length <= 0) return 0;
  text[length] = '\0';
  // "pid (name) state ...": the name may hold anything, so count fields from its last ')'. Start time:
  // field 22.
  const char* field = std::strrchr(text, ')');
  for (int skipped = 2; field != nullptr && skipped < 22; ++skipped) {
    field = std::strchr(field, ' ');
    if (field != nullptr) ++field;
  }
  if (field == nullptr) return 0;
  const std::string start_time(field, std::strcspn(field, " \n"));
  return hash_text(pid + "@" + start_time, 0) | 1;  // never 0
}

std::string missing_text(const MeshOptions& options, const std::string& ranks, const std::string& when) {
  return ranks + " did not arrive " + when + " (this is rank " + std::to_string(options.rank) + " of " +
         std::to_string(options.world_size) + "); meeting point " + meeting_name(options, 0) +
         "; check that all ranks were started, on this host, with the same MASTER_ADDR, MASTER_PORT and "
         "WORLD_SIZE";
}

std::string other_job_text(const MeshOptions& options, const std::string& why) {
  return why +
         ": another job holds this meeting point; set DCOMM_JOB_ID to a different value for each job, and "
         "check that no rank was started twice (meeting point " +
         meeting_name(options, 0) + ")";
}

}  // namespace dcomm
