// The words through which ranks talk: flags, headers, records, the abort line. Floor: protocol.
//
// All are plain integers in window memory; host code reaches them through std::atomic_ref, kernels through
// ld/st.*.sys. Each line has ONE writer (a flag: the sending rank; header and records: the window's owner), so
// plain release stores suffice: no remote atomics, valid on PCIe, NVLink and shared memory alike. The two
// exceptions are `sleepers` (host futex) and `abort` (set by whoever fails first).
// Sequence numbers are 64-bit, start at 1 and are never reset.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/error.h"
#include "schedule/ring.h"
#include "schedule/window_layout.h"

namespace dcomm {

/// How many fingerprints a flag keeps; at least the depth of any placement.
inline constexpr int kHashRing = 4;

/// How many a header keeps.
inline constexpr int kHeaderHashes = 8;

/// Which of a flag's fingerprints belongs to message `seq`. Not one by operation: with changing roots a rank may
/// be many broadcasts ahead of a slow reader. On its flag it is at most `depth` messages ahead, or, in a ring without
/// credits, world_size messages, which touch two tiles. The verifier checks it (tests/cc/verifier.h).
DCOMM_HOST_DEVICE constexpr int flag_hash_index(Flow flow, uint64_t seq, int world_size) {
  const uint64_t turn = flow == Flow::kRing ? seq / static_cast<uint64_t>(ring_num_steps(world_size)) : seq;
  return static_cast<int>(turn % kHashRing);
}

/// One direction of one flow between two ranks; lies in the receiver's window.
struct alignas(kFlagBytes) Flag {
  uint64_t value = 0;                         // messages published so far on this edge; store release, load acquire
  uint64_t hash[kHashRing]{};                 // fingerprints by flag_hash_index; written before value is published
  alignas(kLineBytes) uint32_t sleepers = 0;  // host: threads in FUTEX_WAIT on value's low word
};
static_assert(sizeof(Flag) == kFlagBytes);

/// Host: data that travels in its flag's own cache line. One writer; payload and hash are written before the tag is
/// published. Lines of an operation are contiguous; the next operation uses the other parity's.
struct alignas(kLineBytes) PacketLine {
  uint64_t tag = 0;   // number of the message + 1; 0: none yet
  uint64_t hash = 0;  // the operation's fingerprint
  unsigned char payload[48] = {};
};
inline constexpr size_t kPacketPayloadBytes = sizeof(PacketLine::payload);
static_assert(sizeof(PacketLine) == kLineBytes);

enum class Collective : uint8_t {
  kAllReduce = 1,
  kBroadcast = 2,
  kBarrier = 3,
  kReduceScatter = 4,
  kAllGather = 5,
  kReduce = 6,
  kGather = 7,
  kScatter = 8,
  kAllToAll = 9,
  kSend = 10,
  kRecv = 11,
  kSplit = 12,  // this and what follows are not run by executors: what a failed one is called
  kEmpty = 13,
  kRegister = 14,
  kCudaSetUp = 15,
};
enum class Algo : uint8_t { kAuto = 0, kRing = 1, kTwoShot = 2, kFlat = 3, kOneShot = 4, kTree = 5, kDirect = 6 };

constexpr const char* collective_name(Collective collective) {
  switch (collective) {
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kBroadcast:
      return "broadcast";
    case Collective::kBarrier:
      return "barrier";
    case Collective::kReduceScatter:
      return "reduce_scatter";
    case Collective::kAllGather:
      return "all_gather";
    case Collective::kReduce:
      return "reduce";
    case Collective::kGather:
      return "gather";
    case Collective::kScatter:
      return "scatter";
    case Collective::kAllToAll:
      return "all_to_all";
    case Collective::kSend:
      return "send";
    case Collective::kRecv:
      return "recv";
    case Collective::kSplit:
      return "split";
    case Collective::kEmpty:
      return "empty";
    case Collective::kRegister:
      return "register";
    case Collective::kCudaSetUp:
      return "first CUDA operation";
  }
  return "unknown";
}

/// Its result is a sum, or what else the operation says; the others move elements only.
constexpr bool reduces(Collective collective) {
  return collective == Collective::kAllReduce || collective == Collective::kReduceScatter ||
         collective == Collective::kReduce;
}

/// Where the arrays lie in memory that all ranks reach, peers read this rank's input and nothing else of it: so each
/// rank may have it anywhere in that memory, and its result in memory of its own.
constexpr bool lends_input_only(Collective collective) {
  return collective == Collective::kReduceScatter || collective == Collective::kAllGather;
}

/// Runs on an executor and has a number; the others are made of several that do.
constexpr bool is_executed(Collective collective) { return collective < Collective::kSplit; }

/// In place of recv's peer: whoever sends.
inline constexpr int kAnySource = -1;

/// Only two ranks take part.
constexpr bool is_message(Collective collective) {
  return collective == Collective::kSend || collective == Collective::kRecv;
}

constexpr bool has_root(Collective collective) {
  return collective == Collective::kBroadcast || collective == Collective::kReduce ||
         collective == Collective::kGather || collective == Collective::kScatter;
}

/// Arrays hold one block for each rank, `count` elements long.
constexpr bool has_blocks(Collective collective) {
  return collective == Collective::kReduceScatter || collective == Collective::kAllGather ||
         collective == Collective::kGather || collective == Collective::kScatter || collective == Collective::kAllToAll;
}

constexpr const char* algo_name(Algo algo) {
  switch (algo) {
    case Algo::kAuto:
      return "auto";
    case Algo::kRing:
      return "ring";
    case Algo::kTwoShot:
      return "two_shot";
    case Algo::kFlat:
      return "flat";
    case Algo::kOneShot:
      return "one_shot";
    case Algo::kTree:
      return "tree";
    case Algo::kDirect:
      return "direct";
  }
  return "unknown";
}

/// What all ranks must agree on; the full text behind the 8-byte hash.
struct OpRecord {
  uint64_t seq = 0;
  uint64_t count = 0;
  Collective collective = Collective::kBarrier;
  Algo algo = Algo::kAuto;
  DType dtype = DType::kF32;
  DType wire = DType::kF32;
  ReduceOp op = ReduceOp::kSum;
  uint8_t unused[3] = {};
  int32_t root = -1;  // send and recv: the other rank, or kAnySource
  int32_t tag = 0;    // send and recv
  // The regions (comm/region.h) in which the arrays lie, and where, in bytes; 0: in none. algo kDirect; of a collective
  // that lends_input_only also kAuto, where the peers find out here which way to go.
  uint32_t in_region = 0;
  uint32_t out_region = 0;
  uint64_t in_offset = 0;
  uint64_t out_offset = 0;
};
static_assert(sizeof(OpRecord) == 56);

/// The owner's position; one line, whatever the algorithm. Peers read it on a stall only.
/// By changing roots and small broadcasts a rank may get ahead of a peer that disagrees and waits elsewhere: so the
/// fingerprints of the last operations are kept.
struct alignas(kFlagBytes) Header {
  uint64_t seq = 0;                     // the operation begun last; stored (release) after its hash
  uint64_t hashes[kHeaderHashes] = {};  // by seq % kHeaderHashes
  uint64_t completed = 0;               // the operation finished last
  uint32_t cpu = 0;                     // host: where the operation began; two ranks on one CPU move apart
};
static_assert(sizeof(Header) == kFlagBytes);

/// Why the communicator broke. `attention` is polled by every wait; nonzero means: look closer.
struct alignas(kFlagBytes) AbortLine {
  uint64_t reason = 0;     // AbortReason packed; the first one of the earliest operation stays, by compare-exchange
  uint32_t attention = 0;  // reason was set, or a peer's exit was seen
};

/// How many operations on a GPU a rank's window remembers; how many messages there, to and from all peers.
inline constexpr int kCudaRecords = 16;
inline constexpr int kCudaMessages = 32;

/// A send or recv on a GPU: call.seq is its number among those of its kind with that peer, from 1.
struct CudaMessageRecord {
  uint64_t order = 0;  // among all of the rank's messages, from 1
  OpRecord call;
};
static_assert(sizeof(CudaMessageRecord) == kLineBytes);

/// In windows of the host, where ranks are processes: what the owner has launched on its GPU. Operations there have
/// numbers of their own, from 1; messages are none of them, since not all ranks know of them.
struct alignas(kFlagBytes) CudaPosition {
  uint64_t launched = 0;                // the last one; stored (release) after its record
  OpRecord records[kCudaRecords] = {};  // by number % kCudaRecords
  alignas(kLineBytes) CudaMessageRecord messages[kCudaMessages] = {};  // by order % kCudaMessages
};

/// Its line for each peer holds how many messages the owner has launched to that peer (value) and from it (hash[0]).
/// Nobody else writes there: in windows of the host a ring has no credits.
inline constexpr Flow kCudaMessageCounts = Flow::kRingCredit;

/// Words that the window's owner leaves for its peers' texts; comm/window_text.h. Never in the way of an operation.
template <size_t kNumWords>
struct alignas(kFlagBytes) WindowText {
  uint64_t number = 0;  // what the text is about; 0: there is none. Stored (release) after the text
  uint64_t words[kNumWords] = {};
};

struct ControlPage {
  Header header;
  alignas(kFlagBytes) OpRecord records[2];  // by parity of seq
  AbortLine abort;
  CudaPosition cuda;
  WindowText<15> call_site;     // where the program called operation `number`, once that has stalled or failed
  WindowText<31> parting_note;  // why the owner leaves, or aborts
};
static_assert(sizeof(ControlPage) <= kControlBytes);

/// What a rank tells its peers when it fails; packed into one word so that it is set atomically.
struct AbortReason {
  ErrorCode code = ErrorCode::kOk;
  uint16_t reporter = 0;  // the rank that raised first
  uint16_t culprit = 0;   // the rank it names
  uint8_t detail = 0;     // AbortDetail
  uint32_t seq = 0;       // low bits of the failing operation (0: whatever the operation); 16 are kept

  uint64_t pack() const {
    return (static_cast<uint64_t>(code) << 56) | (static_cast<uint64_t>(detail) << 48) |
           (static_cast<uint64_t>(reporter) << 32) | (static_cast<uint64_t>(culprit) << 16) | (seq & 0xffffu);
  }
  static AbortReason unpack(uint64_t word) {
    AbortReason reason;
    reason.code = static_cast<ErrorCode>(word >> 56);
    reason.detail = static_cast<uint8_t>(word >> 48);
    reason.reporter = static_cast<uint16_t>(word >> 32);
    reason.culprit = static_cast<uint16_t>(word >> 16);
    reason.seq = static_cast<uint32_t>(word & 0xffffu);
    return reason;
  }
  /// True when a rank that is still inside operation `op_seq` must stop too: the failing operation is not a
  /// later one (which this rank's peers may only have reached after completing ours).
  bool concerns(uint64_t op_seq) const {
    return seq == 0 || static_cast<int16_t>(static_cast<uint16_t>(seq - (op_seq & 0xffffu))) <= 0;
  }
};

/// kMessage: what differs is a message from rank to rank (a mismatch), not the order of operations. kFromAny: what came
/// too late is a message of any rank (a timeout); the culprit is the rank that waited. kExits: it left because its
/// process ends, without close().
enum class AbortDetail : uint8_t {
  kNone = 0,
  kDied = 1,
  kLeft = 2,
  kInterrupted = 3,
  kMessage = 4,
  kFromAny = 5,
  kExits = 6,
};

}  // namespace dcomm
