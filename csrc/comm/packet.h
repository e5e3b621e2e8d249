// The packets between two ranks of a finished meeting. Floor: comm.
//
// A message of set-up is cut into packets of at most 16 KiB (the default send buffer of a Unix socket is
// 208 KiB, and a packet must fit whole). All others are single packets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>

namespace dcomm {

enum class PacketType : uint32_t {
  kData = 1,
  kAbort = 2,          // set-up failed on the sender; kind: its ErrorCode; the payload: pack_error()
  kGoodbye = 3,        // the sender closes its last communicator of this mesh on purpose
  kWindow = 4,         // payload: id of a new communicator; with the descriptor of the sender's window
  kMemberGoodbye = 5,  // payload: id of the communicator that the sender closes; it has others on this mesh
  kStop = 6,           // payload: id of a communicator that the sender has aborted
};

enum class GoodbyeKind : uint32_t { kClosed = 0, kExits = 1 };

struct PacketHeader {
  uint32_t magic = 0x4d4f4344;  // "DCOM"
  PacketType type = PacketType::kData;
  uint32_t kind = 0;         // which collective (both sides must be in the same one); of a goodbye: GoodbyeKind
  uint32_t sequence = 0;     // number of the collective on this mesh
  uint32_t total_bytes = 0;  // of the whole message
  uint32_t offset = 0;       // of this packet's payload in it
};
static_assert(sizeof(PacketHeader) == 24 && std::is_trivially_copyable_v<PacketHeader>);

inline constexpr size_t kSocketPayloadBytes = 16 * 1024;
inline constexpr size_t kMaxPacketBytes = sizeof(PacketHeader) + kSocketPayloadBytes;
inline constexpr size_t kMaxMessageBytes = size_t{1} << 20;

/// The header of a packet that was `nbytes` long; nothing if any field is out of range.
inline std::optional<PacketHeader> decode_header(const uint8_t* data, size_t nbytes) {
  PacketHeader header;
  if (nbytes < sizeof header || nbytes > kMaxPacketBytes) return {};
  std::memcpy(&header, data, sizeof header);
  const size_t payload_bytes = nbytes - sizeof header;
  const bool in_range = header.magic == PacketHeader{}.magic && header.total_bytes <= kMaxMessageBytes &&
                        header.offset <= header.total_bytes && payload_bytes <= header.total_bytes - header.offset &&
                        header.type >= PacketType::kData && header.type <= PacketType::kStop;
  if (!in_range) return {};
  return header;
}

}  // namespace dcomm
