// The packets of the meeting at rank 0: a hello of every rank, replies of rank 0. Floor: comm.
//
// Both layouts are frozen for all protocol versions: ranks of different dcomm versions must understand each
// other well enough to name the difference. Native byte order: both ends are on one host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/mesh.h"

namespace dcomm {

inline constexpr size_t kHelloBytes = 160;
inline constexpr size_t kMaxReplyBytes = 80 * 1024;  // a welcome holds 16 bytes per rank
inline constexpr int kMaxRanks = 4096;

struct Hello {
  uint32_t protocol = kWireProtocolVersion;
  int rank = 0;
  int world_size = 1;
  uint64_t init_counter = 0;
  uint64_t config_hash = 0;
  uint64_t launcher = 0;  // who started this rank; 0 = unknown
  Token token{};          // of the meeting key when exact, else zeros
  Token listener{};       // random name of this rank's own listener
  std::string version;    // package version; at most 71 characters travel
};

using HelloBytes = std::array<uint8_t, kHelloBytes>;
HelloBytes encode_hello(const Hello& hello);
/// Nothing unless size, magic, checksum, ranges and version text are all in order.
std::optional<Hello> decode_hello(const uint8_t* data, size_t nbytes);

/// Why these ranks cannot be one group, naming rank -> value; empty when they can. hellos[0] is rank 0's.
std::string first_difference(const std::vector<const Hello*>& hellos, bool* of_versions);

enum class ReplyKind : uint32_t {
  kWelcome = 0,  // token, then the listener name of every rank
  kStatus = 1,   // you are seated; pack_error() of the ranks that are missing
  kVersionMismatch = 2,
  kInvalidArgument = 3,
  kPeerLost = 4,  // text and ranks of this one and the next: pack_error()
  kTimeout = 5,
  kGaveUp = 6,  // to rank 0: this rank's deadline has passed
};

struct Reply {
  ReplyKind kind = ReplyKind::kStatus;
  std::vector<uint8_t> body;
  std::string text() const { return {body.begin(), body.end()}; }
};

std::vector<uint8_t> encode_reply(ReplyKind kind, const std::vector<uint8_t>& body);
std::vector<uint8_t> encode_reply(ReplyKind kind, const std::string& text);
std::optional<Reply> decode_reply(const uint8_t* data, size_t nbytes);

/// Presented to another rank's listener after the meeting.
struct PairHello {
  Token token{};
  int rank = 0;
};
inline constexpr size_t kPairHelloBytes = 32;
std::array<uint8_t, kPairHelloBytes> encode_pair_hello(const PairHello& hello);
std::optional<PairHello> decode_pair_hello(const uint8_t* data, size_t nbytes);

}  // namespace dcomm
