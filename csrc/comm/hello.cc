// Layout of the meeting's packets. Floor: comm.
//
// Everything is copied out by memcpy from a buffer whose length was checked first. The checksum (FNV-1a) is
// no protection against malice, which a process of the same user has better means for, but keeps a garbled
// hello from being taken for a rank with another configuration.
#include "comm/hello.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace dcomm {
namespace {

constexpr char kHelloMagic[8] = {'d', 'c', 'o', 'm', 'm', 'H', 'I', '1'};
constexpr char kReplyMagic[8] = {'d', 'c', 'o', 'm', 'm', 'R', 'E', '1'};
constexpr char kPairMagic[8] = {'d', 'c', 'o', 'm', 'm', 'P', 'A', '1'};
constexpr size_t kVersionBytes = 72;

struct HelloWire {
  char magic[8];
  uint64_t checksum;  // of all that follows
  uint32_t protocol;
  uint32_t rank;
  uint32_t world_size;
  uint32_t reserved;  // sent as zero, ignored
  uint64_t init_counter;
  uint64_t config_hash;
  uint64_t launcher;
  uint8_t token[16];
  uint8_t listener[16];
  char version[kVersionBytes];  // zero-terminated
};
static_assert(sizeof(HelloWire) == kHelloBytes && std::is_trivially_copyable_v<HelloWire>);

struct ReplyWire {
  char magic[8];
  uint32_t kind;
  uint32_t body_bytes;
};
static_assert(sizeof(ReplyWire) == 16);

struct PairWire {
  char magic[8];
  uint8_t token[16];
  uint32_t rank;
  uint32_t reserved;
};
static_assert(sizeof(PairWire) == kPairHelloBytes);

uint64_t checksum_of(const HelloWire& wire) {
  uint8_t bytes[sizeof wire];
  std::memcpy(bytes, &wire, sizeof wire);
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (size_t i = offsetof(HelloWire, protocol); i < sizeof wire; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3ULL;
  return hash;
}

bool is_printable(char c) { return c >= 0x20 && c < 0x7f; }

/// The version field up to its terminator; nothing if it has none or holds anything but printable ASCII.
std::optional<std::string> version_text(const char (&field)[kVersionBytes]) {
  const char* end = std::find(field, field + kVersionBytes, '\0');
  if (end == field + kVersionBytes || !std::all_of(static_cast<const char*>(field), end, is_printable)) return {};
  return std::string(static_cast<const char*>(field), end);
}

}  // namespace

HelloBytes encode_hello(const Hello& hello) {
  HelloWire wire{};
  std::memcpy(wire.magic, kHelloMagic, sizeof wire.magic);
  wire.protocol = hello.protocol;
  wire.rank = static_cast<uint32_t>(hello.rank);
  wire.world_size = static_cast<uint32_t>(hello.world_size);
  wire.init_counter = hello.init_counter;
  wire.config_hash = hello.config_hash;
  wire.launcher = hello.launcher;
  std::memcpy(wire.token, hello.token.data(), sizeof wire.token);
  std::memcpy(wire.listener, hello.listener.data(), sizeof wire.listener);
  const size_t length = std::min(hello.version.size(), kVersionBytes - 1);
  std::transform(hello.version.begin(), hello.version.begin() + static_cast<std::ptrdiff_t>(length), wire.version,
                 [](char c) { return is_printable(c) ? c : '?'; });
  wire.checksum = checksum_of(wire);
  HelloBytes bytes;
  std::memcpy(bytes.data(), &wire, sizeof wire);
  return bytes;
}

std::optional<Hello> decode_hello(const uint8_t* data, size_t nbytes) {
  HelloWire wire;
  if (nbytes != sizeof wire) return {};
  std::memcpy(&wire, data, sizeof wire);
  if (std::memcmp(wire.magic, kHelloMagic, sizeof wire.magic) != 0 || wire.checksum != checksum_of(wire)) return {};
  if (wire.world_size < 1 || wire.world_size > kMaxRanks || wire.rank >= wire.world_size) return {};
  const auto version = version_text(wire.version);
  if (!version) return {};
  Hello hello;
  hello.protocol = wire.protocol;
  hello.rank = static_cast<int>(wire.rank);
  hello.world_size = static_cast<int>(wire.world_size);
  hello.init_counter = wire.init_counter;
  hello.config_hash = wire.config_hash;
  hello.launcher = wire.launcher;
  std::memcpy(hello.token.data(), wire.token, sizeof wire.token);
  std::memcpy(hello.listener.data(), wire.listener, sizeof wire.listener);
  hello.version = *version;
  return hello;
}

std::vector<uint8_t> encode_reply(ReplyKind kind, const std::vector<uint8_t>& body) {
  const size_t body_bytes = std::min(body.size(), kMaxReplyBytes - sizeof(ReplyWire));
  ReplyWire wire{};
  std::memcpy(wire.magic, kReplyMagic, sizeof wire.magic);
  wire.kind = static_cast<uint32_t>(kind);
  wire.body_bytes = static_cast<uint32_t>(body_bytes);
  std::vector<uint8_t> bytes(sizeof wire + body_bytes);
  std::memcpy(bytes.data(), &wire, sizeof wire);
  std::copy_n(body.begin(), body_bytes, bytes.begin() + sizeof wire);
  return bytes;
}

std::vector<uint8_t> encode_reply(ReplyKind kind, const std::string& text) {
  return encode_reply(kind, std::vector<uint8_t>(text.begin(), text.end()));
}

std::optional<Reply> decode_reply(const uint8_t* data, size_t nbytes) {
  ReplyWire wire;
  if (nbytes < sizeof wire || nbytes > kMaxReplyBytes) return {};
  std::memcpy(&wire, data, sizeof wire);
  if (std::memcmp(wire.magic, kReplyMagic, sizeof wire.magic) != 0) return {};
  if (wire.body_bytes != nbytes - sizeof wire || wire.kind > static_cast<uint32_t>(ReplyKind::kGaveUp)) return {};
  return Reply{static_cast<ReplyKind>(wire.kind), {data + sizeof wire, data + nbytes}};
}

std::array<uint8_t, kPairHelloBytes> encode_pair_hello(const PairHello& hello) {
  PairWire wire{};
  std::memcpy(wire.magic, kPairMagic, sizeof wire.magic);
  std::memcpy(wire.token, hello.token.data(), sizeof wire.token);
  wire.rank = static_cast<uint32_t>(hello.rank);
  std::array<uint8_t, kPairHelloBytes> bytes;
  std::memcpy(bytes.data(), &wire, sizeof wire);
  return bytes;
}

std::optional<PairHello> decode_pair_hello(const uint8_t* data, size_t nbytes) {
  PairWire wire;
  if (nbytes != sizeof wire) return {};
  std::memcpy(&wire, data, sizeof wire);
  if (std::memcmp(wire.magic, kPairMagic, sizeof wire.magic) != 0 || wire.rank >= kMaxRanks) return {};
  PairHello hello;
  std::memcpy(hello.token.data(), wire.token, sizeof wire.token);
  hello.rank = static_cast<int>(wire.rank);
  return hello;
}

}  // namespace dcomm
