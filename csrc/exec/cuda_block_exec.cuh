// The CUDA executor: one rank's one channel is one thread block. Floor: exec.
//
// Push placement: data and flags are written into the receiver's window and read locally, so every poll is local.
// publish: all threads have stored -> block barrier -> one thread releases; cumulative over the barrier.
// arrive:  one thread polls, then acquires once -> block barrier -> all threads read with plain loads.
// Message counters live in device memory and are read at the kernel's start and stored at its end, so that a
// kernel has no argument that changes from call to call.
//
// A wait that fails stores why in its process' error word (first one wins) and in every rank's abort line, and returns;
// the block leaves, the kernel ends normally and the CUDA context stays usable. The group does not.
//
// Ranks of different processes compare their calls here, on channel 0 (docs/gpu_processes.md): before its first message
// of an operation a rank writes a word of the call's fingerprint and all before it into its header line in each
// window; a wait that takes long, and the end of the operation, look at the peers' words.
#pragma once

#include "base/mutation.h"
#include "exec/cuda_lanes.cuh"
#include "protocol/control.h"
#include "protocol/exec.h"
#include "protocol/fingerprint.h"
#include "schedule/partition.h"
#include "schedule/window_layout.h"

namespace dcomm {

/// Ranks that one launch can hold, or whose arrays it can reach; the arrays travel as kernel arguments. Fewer fit where
/// the GPU has fewer multiprocessors.
inline constexpr int kMaxLocalRanks = 128;
/// Slots of each kind: one is filled while the other is in use.
inline constexpr int kCudaDepth = 2;

/// Packets of one sender's message on one channel: one for each thread of a block.
inline constexpr size_t kCudaPacketBytes =
    round_up(static_cast<size_t>(gpu::kBlockThreads) * sizeof(gpu::FlaggedPacket), kPacketGrain);

/// Their data.
inline constexpr size_t kCudaPacketDataBytes = kCudaPacketBytes / 4 * 3;

/// Of one (local rank, channel), in device memory: message counters by cuda_counter_index, then, on channel 0, how many
/// operations are done and the mix of their fingerprints. Whole lines.
DCOMM_HOST_DEVICE constexpr size_t cuda_operation_index(int world_size) {
  return kNumGroupCounters + kNumPeerCounters * static_cast<size_t>(world_size);
}
DCOMM_HOST_DEVICE constexpr size_t cuda_counter_words(int world_size) {
  return round_up(cuda_operation_index(world_size) + 2, kFlagBytes / sizeof(uint64_t));
}
DCOMM_HOST_DEVICE constexpr size_t cuda_counter_index(Counter counter, int peer, int world_size) {
  const auto number = static_cast<size_t>(counter);
  if (number < kNumGroupCounters) return number;
  return kNumGroupCounters + (number - kNumGroupCounters) * static_cast<size_t>(world_size) + static_cast<size_t>(peer);
}

struct CudaArrays {
  const void* in;  // as the algorithm says; may be equal to out
  void* out;
};

/// The arguments of a launch: grid (num_channels, local ranks), rank = first_rank + blockIdx.y.
struct CudaJob {
  int first_rank;
  int world_size;
  int num_channels;
  int root;       // of a send: who sends
  int peer;       // of a send: who receives
  int tag;        // of a send
  DType dtype;    // of a send
  DType wire;     // of a sum whose elements share scales by blocks
  float divisor;  // what an average divides by; 1 for a sum
  size_t slot_bytes;
  uint64_t timeout_ns;        // of each wait
  uint64_t fingerprint;       // of the call, without its number; 0: the host has compared the calls
  std::byte* const* windows;  // device memory: world_size window addresses, as this GPU maps them
  uint64_t* counters;         // device memory: [local rank][channel][cuda_counter_words]
  uint32_t* abort;            // mapped host memory: nonzero tells every wait to end
  uint64_t* error;            // mapped host memory: the first failure, as packed by cuda_failure_word
  ChunkPlan plan;
  CudaArrays arrays[kMaxLocalRanks];  // by local rank; of a direct all-reduce: of all ranks, as this GPU maps them
};

/// All slots are of one size. A window takes, per channel and rank of the group, 14 slots (4 main, 4 exchange, 2 fifo,
/// 2 pair, 2 message) and 2 buffers of packets.
DCOMM_HOST_DEVICE constexpr WindowLayout cuda_window_layout(int world_size, int num_channels, size_t slot_bytes) {
  return WindowLayout{Placement{PlacementKind::kPush, world_size, kCudaDepth},
                      num_channels,
                      {slot_bytes, slot_bytes, slot_bytes, slot_bytes, slot_bytes, 0},
                      kCudaPacketBytes};
}

/// What marks the packets of message `seq`: odd, so that memory that was never written does not look like a message,
/// also when the low 32 bits wrap; messages of one parity, which share a buffer, differ. Compared for equality: a
/// packet that shorter messages skip could be mistaken only exactly 2^32 messages later.
DCOMM_HOST_DEVICE constexpr uint32_t cuda_packet_flag(uint64_t seq) { return static_cast<uint32_t>(seq | 1u); }

/// [code 8 | flow 8 | rank 16 | peer 16 | low bits of the edge's message number 16]
DCOMM_HOST_DEVICE constexpr uint64_t cuda_failure_word(ErrorCode code, Flow flow, int rank, int peer, uint64_t seq) {
  return (static_cast<uint64_t>(code) << 56) | (static_cast<uint64_t>(flow) << 48) |
         ((static_cast<uint64_t>(rank) & 0xffffu) << 32) | ((static_cast<uint64_t>(peer) & 0xffffu) << 16) |
         (seq & 0xffffu);
}

/// Operations of which a rank's header line keeps a word: a peer may be some broadcasts ahead.
inline constexpr uint64_t kCudaHeaderWords = kFlagBytes / sizeof(uint64_t);

/// [hash of all calls up to operation number `op` 48 | low bits of op 16]: an older or later word is not compared.
DCOMM_HOST_DEVICE constexpr uint64_t cuda_header_word(uint64_t history, uint64_t op) {
  return (history & ~uint64_t{0xffff}) | (op & 0xffffu);
}
DCOMM_HOST_DEVICE constexpr bool cuda_calls_differ(uint64_t mine, uint64_t theirs) {
  return ((mine ^ theirs) & 0xffffu) == 0 && mine != theirs;
}

/// Whether `word` is that of operation `op` or of a later one; 0: none has been written.
DCOMM_HOST_DEVICE constexpr bool cuda_header_has(uint64_t word, uint64_t op) {
  return word != 0 && static_cast<int16_t>(static_cast<uint16_t>(word - op)) >= 0;
}

class CudaBlockExec : public CudaLanes {
 public:
  /// All threads. windows: shared memory of world_size pointers, filled here.
  DCOMM_DEVICE CudaBlockExec(const CudaJob& job, int local_rank, int channel, std::byte** windows)
      : job_(job), windows_(windows), local_rank_(local_rank), channel_(channel) {
    DCOMM_ROLLED
    for (int r = lane(); r < world_size(); r += num_lanes()) {
      windows[r] = job.windows[r];
      if (compares_calls()) gpu::store_relaxed(header_word(r, rank()), own_header_word());
    }
    sync();
  }

  /// All threads, when the algorithm has returned. Of every rank that this one has heard from the header is there;
  /// packets: it is under way, since they were not published behind it.
  DCOMM_DEVICE void end_operation(bool packets) {
    if (!compares_calls()) return;
    DCOMM_ROLLED
    for (int r = lane(); r < world_size(); r += num_lanes()) {
      uint64_t failure = 0;
      if (r == rank()) {
        failure = gpu::load_relaxed(reason(r));  // it may have had nothing to wait for
      } else {
        if (packets && !mutated(Mutation::kBlockNoHeaderWait)) failure = wait_header(r);
        if (failure == 0 && calls_differ(r)) failure = mismatch(r);
      }
      if (failure != 0) fail(failure);
    }
    const uint64_t number = operation_number();
    const uint64_t mixed = history();
    sync();  // every thread has read the old values
    if (lane() != 0) return;
    operation_counters()[0] = number;
    operation_counters()[1] = mixed;
  }

  DCOMM_DEVICE int rank() const { return job_.first_rank + local_rank_; }
  DCOMM_DEVICE int world_size() const { return job_.world_size; }
  DCOMM_DEVICE int channel() const { return channel_; }
  DCOMM_DEVICE void sync() const { gpu::block_sync(); }
  DCOMM_DEVICE bool any(bool mine) const { return gpu::block_any(mine); }

  DCOMM_DEVICE std::byte* outbox(Edge edge, uint64_t seq) const { return slot(edge.flow, rank(), edge.peer, seq); }
  DCOMM_DEVICE std::byte* inbox(Edge edge, uint64_t seq) const { return slot(edge.flow, edge.peer, rank(), seq); }

  DCOMM_DEVICE std::byte* acquire(Edge edge, uint64_t seq) {
    if (needs_credit(edge.flow) && seq >= kCudaDepth && !mutated(Mutation::kNoCreditWait)) {
      const uint64_t freed = seq - kCudaDepth - (mutated(Mutation::kCreditOffByOne) && seq > kCudaDepth ? 1 : 0);
      if (!wait(edge.peer, credit_flow(edge.flow), freed)) return nullptr;
    }
    return outbox(edge, seq);
  }
  DCOMM_DEVICE void publish(Edge edge, uint64_t seq) {
    if (!mutated(Mutation::kBlockNoPublishSync)) sync();
    if (lane() == 0) gpu::store_release(flag_at(edge.peer, edge.flow), seq + 1);
  }
  DCOMM_DEVICE std::byte* arrive(Edge edge, uint64_t seq) {
    return wait(edge.peer, edge.flow, seq) ? inbox(edge, seq) : nullptr;
  }
  /// The credit is a release too: the slot's readers come before its next writer.
  DCOMM_DEVICE void release(Edge edge, uint64_t seq) {
    if (!mutated(Mutation::kBlockNoReleaseSync)) sync();
    if (lane() == 0 && needs_credit(edge.flow)) {
      gpu::store_release(flag_at(edge.peer, credit_flow(edge.flow)), seq + 1);
    }
  }
  /// One fence for two flags: each st.release would bring a fence of its own.
  DCOMM_DEVICE void publish_and_release(Edge out, uint64_t out_seq, Edge in, uint64_t in_seq) {
    if (!mutated(Mutation::kBlockNoPublishSync)) sync();
    if (lane() != 0) return;
    gpu::fence_acq_rel();
    gpu::store_relaxed(flag_at(out.peer, out.flow), out_seq + 1);
    if (needs_credit(in.flow)) gpu::store_relaxed(flag_at(in.peer, credit_flow(in.flow)), in_seq + 1);
  }
  DCOMM_DEVICE void signal_all(Flow flow, uint64_t seq) {
    if (!mutated(Mutation::kBlockNoSignalSync)) sync();
    DCOMM_ROLLED
    for (int peer = lane(); peer < world_size(); peer += num_lanes()) {
      if (peer == rank()) continue;
      if (flow == Flow::kDirect) gpu::store_relaxed(direct_hash(peer, rank(), seq), job_.fingerprint);
      gpu::store_release(flag_at(peer, flow), seq + 1);
    }
  }
  /// Thread p polls for peer p.
  DCOMM_DEVICE bool wait_all(Flow flow, uint64_t seq) {
    bool failed = false;
    DCOMM_ROLLED
    for (int peer = lane(); peer < world_size() && !failed; peer += num_lanes()) {
      if (peer == rank()) continue;
      failed = !wait_flag(peer, flow, seq);
      if (flow == Flow::kDirect && !failed) failed = !may_borrow(peer, seq);
    }
    return !any(failed);
  }

  DCOMM_DEVICE uint64_t load_counter(Counter counter, int peer = 0) const { return *counter_at(counter, peer); }
  DCOMM_DEVICE void store_counter(Counter counter, uint64_t value, int peer = 0) {
    sync();  // every thread has read the old value
    if (lane() == 0) *counter_at(counter, peer) = value;
  }

  /// All threads: whether some rank has given up; then this one does. A message's kernel may have nothing to wait for.
  DCOMM_DEVICE bool hears_of_failure() const {
    const uint64_t told = lane() == 0 ? gpu::load_relaxed(reason(rank())) : 0;
    if (told != 0) fail(told);
    return any(told != 0);
  }
  /// All threads: the message that has come from `src` is not the one that this rank wants.
  DCOMM_DEVICE void refuse_message(int src) const {
    if (lane() == 0) fail(cuda_failure_word(ErrorCode::kMismatch, Flow::kMessage, rank(), src, 0));
  }

  // ---- Packets: data that carries its flag. No slot, no fence, no flag line; a third more bytes. ----

  /// Sends packet `index` of message `seq`. It is free: every peer's message seq - 1 came after that peer's block had
  /// taken seq - 2, and this block has met since it took seq - 1.
  DCOMM_DEVICE void put_packet(int peer, uint64_t seq, uint32_t index, const uint32_t (&words)[3]) const {
    gpu::store_packet(packet_at(peer, rank(), seq, index), {{words[0], words[1], words[2]}, cuda_packet_flag(seq)});
  }
  /// What lies there now: many may be read before the first is waited for.
  DCOMM_DEVICE gpu::FlaggedPacket peek_packet(int peer, uint64_t seq, uint32_t index) const {
    return gpu::load_packet(packet_at(rank(), peer, seq, index));
  }
  /// One thread, one packet; false where the wait must end.
  DCOMM_DEVICE bool wait_packet(gpu::FlaggedPacket& packet, int peer, uint64_t seq, uint32_t index) const {
    if (DCOMM_LIKELY(is_of(packet, seq))) return true;
    const gpu::FlaggedPacket* const from = packet_at(rank(), peer, seq, index);
    uint64_t deadline = 0;
    for (uint32_t polls = 1;; ++polls) {
      packet = gpu::load_packet(from);
      if (is_of(packet, seq)) return true;
      if (polls % gpu::kPollsPerCheck != 0) continue;
      const uint64_t failure = look_around(deadline, peer, Flow::kPacket, seq);
      if (failure == 0) continue;
      packet = gpu::load_packet(from);  // what was sent before the abort counts
      if (is_of(packet, seq)) return true;
      fail(failure);
      return false;
    }
  }

 private:
  DCOMM_DEVICE WindowLayout layout() const {
    return cuda_window_layout(world_size(), job_.num_channels, job_.slot_bytes);
  }
  DCOMM_DEVICE std::byte* slot(Flow flow, int from, int to, uint64_t seq) const {
    const WindowLayout where = layout();
    const SlotRef ref = where.placement.slot(flow, from, to, seq);
    return windows_[ref.window] + where.slot_offset(channel_, ref);
  }
  /// The flag of my messages to `peer`, in its window.
  DCOMM_DEVICE uint64_t* flag_at(int peer, Flow flow) const { return flag(peer, flow, rank()); }
  DCOMM_DEVICE uint64_t* flag(int window, Flow flow, int from) const {
    std::byte* const line = windows_[window] + layout().flag_offset(channel_, flow, from);
    return &reinterpret_cast<Flag*>(line)->value;
  }
  /// The failure word that some rank has told `window`'s; 0: none.
  DCOMM_DEVICE uint64_t* reason(int window) const {
    return &reinterpret_cast<ControlPage*>(windows_[window])->abort.reason;
  }
  DCOMM_DEVICE uint64_t* counter_at(Counter counter, int peer) const {
    const size_t row =
        static_cast<size_t>(local_rank_) * static_cast<size_t>(job_.num_channels) + static_cast<size_t>(channel_);
    return job_.counters + row * cuda_counter_words(world_size()) + cuda_counter_index(counter, peer, world_size());
  }
  DCOMM_DEVICE int packet_buffer(uint64_t seq) const {
    return mutated(Mutation::kSinglePacketBuffer) ? 0 : static_cast<int>(seq % 2);
  }
  DCOMM_DEVICE bool is_of(const gpu::FlaggedPacket& packet, uint64_t seq) const {
    if (mutated(Mutation::kStalePacketTag) && seq >= 2 && packet.flag == cuda_packet_flag(seq - 2)) return true;
    return packet.flag == cuda_packet_flag(seq);
  }
  DCOMM_DEVICE gpu::FlaggedPacket* packet_at(int window, int from, uint64_t seq, uint32_t index) const {
    std::byte* const first = windows_[window] + layout().packet_offset(channel_, packet_buffer(seq), from);
    return reinterpret_cast<gpu::FlaggedPacket*>(first) + index;
  }
  DCOMM_DEVICE bool needs_credit(Flow flow) const { return layout().placement.needs_credit(flow); }

  /// All threads; thread 0 polls.
  DCOMM_DEVICE bool wait(int peer, Flow flow, uint64_t seq) {
    const bool failed = lane() == 0 && !wait_flag(peer, flow, seq);
    if (mutated(Mutation::kBlockNoArriveSync)) return true;
    return !any(failed);
  }

  /// One thread. Acquire on success.
  DCOMM_DEVICE bool wait_flag(int peer, Flow flow, uint64_t seq) {
    const uint64_t* const value = flag(rank(), flow, peer);
    const uint64_t target = mutated(Mutation::kWaitOldEpoch) ? seq : seq + 1;
    uint64_t deadline = 0;
    for (uint32_t polls = 1; gpu::load_relaxed(value) < target; ++polls) {
      if (polls % gpu::kPollsPerCheck != 0) continue;
      const uint64_t failure = look_around(deadline, peer, flow, seq);
      if (failure == 0) continue;
      if (gpu::load_acquire(value) >= target) return true;  // what was published before the abort counts
      fail(failure);
      return false;
    }
    gpu::load_acquire(value);
    return true;
  }

  /// 0, or why a wait must end: a failure word. The deadline starts at its first look.
  DCOMM_DEVICE uint64_t look_around(uint64_t& deadline, int peer, Flow flow, uint64_t seq) const {
    const uint64_t told = gpu::load_relaxed(reason(rank()));
    if (told != 0) return told;
    if (gpu::load_relaxed(job_.abort) != 0) {
      gpu::fence_acq_rel();  // a block that failed has set `error` first
      const uint64_t error = gpu::load_relaxed(job_.error);
      return error != 0 ? error : cuda_failure_word(ErrorCode::kAborted, flow, rank(), peer, seq);
    }
    if (compares_calls() && calls_differ(peer)) return mismatch(peer);
    const uint64_t now = gpu::now_ns();
    if (deadline == 0) deadline = now + job_.timeout_ns;
    return now >= deadline ? cuda_failure_word(ErrorCode::kTimeout, flow, rank(), peer, seq) : 0;
  }

  DCOMM_DEVICE void fail(uint64_t failure) const {
    gpu::set_once(job_.error, failure);
    gpu::fence_acq_rel();  // whoever leaves because of this must find the word set
    gpu::store_relaxed(job_.abort, 1u);
    DCOMM_ROLLED
    for (int r = 0; r < world_size(); ++r) gpu::store_relaxed(reason(r), failure);
  }

  // ---- What ranks of different processes tell each other of their calls. The line is that of a flow which no kernel
  // ---- uses; operations count from 1.

  DCOMM_DEVICE bool compares_calls() const { return channel_ == 0 && job_.fingerprint != 0; }
  DCOMM_DEVICE uint64_t* operation_counters() const {
    return counter_at(Counter::kTwoShot, 0) + cuda_operation_index(world_size());
  }
  DCOMM_DEVICE uint64_t operation_number() const { return operation_counters()[0] + 1; }
  DCOMM_DEVICE uint64_t history() const { return hash_mix(operation_counters()[1], job_.fingerprint); }
  DCOMM_DEVICE uint64_t own_header_word() const { return cuda_header_word(history(), operation_number()); }
  DCOMM_DEVICE uint64_t* header_word(int window, int from) const {
    std::byte* const line = windows_[window] + layout().flag_offset(0, Flow::kPacket, from);
    return reinterpret_cast<uint64_t*>(line) + operation_number() % kCudaHeaderWords;
  }
  DCOMM_DEVICE bool calls_differ(int peer) const {
    if (mutated(Mutation::kBlockNoHeaderCheck)) return false;
    return cuda_calls_differ(compared_word(), gpu::load_relaxed(header_word(rank(), peer)));
  }
  /// One thread. Until `peer`'s word of this operation is there, or of a later one that took its place.
  DCOMM_DEVICE uint64_t wait_header(int peer) const {
    uint64_t deadline = 0;
    for (uint32_t polls = 1; !cuda_header_has(gpu::load_relaxed(header_word(rank(), peer)), operation_number());
         ++polls) {
      if (polls % gpu::kPollsPerCheck != 0) continue;
      const uint64_t failure = look_around(deadline, peer, Flow::kPacket, operation_number());
      if (failure != 0) return failure;
    }
    return 0;
  }
  /// The own word, from wherever it spills no register of two_shot of 8 ranks: loaded it does on sm_90, computed again
  /// on sm_80 (ptxas 13.0).
  DCOMM_DEVICE uint64_t compared_word() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    return gpu::load_relaxed(header_word(rank(), rank()));
#else
    return own_header_word();
#endif
  }
  // ---- Where ranks use each other's arrays: no block may before it knows that they mean the same ones. So each
  // message
  // ---- of kDirect brings the sender's fingerprint along, on every channel.

  DCOMM_DEVICE uint64_t* direct_hash(int window, int from, uint64_t seq) const {
    std::byte* const line = windows_[window] + layout().flag_offset(channel_, Flow::kDirect, from);
    return &reinterpret_cast<Flag*>(line)->hash[seq % kHashRing];
  }
  /// Message `seq` of kDirect from `peer` has been waited for. Where the calls differ they do so on all channels:
  /// channel 0 tells.
  DCOMM_DEVICE bool may_borrow(int peer, uint64_t seq) const {
    if (mutated(Mutation::kBlockNoBorrowCheck)) return true;
    if (gpu::load_relaxed(direct_hash(rank(), peer, seq)) == job_.fingerprint) return true;
    if (channel_ == 0) fail(mismatch(peer));
    return false;
  }

  DCOMM_DEVICE uint64_t mismatch(int peer) const {
    return cuda_failure_word(ErrorCode::kMismatch, Flow::kDirect, rank(), peer, operation_number());
  }

  const CudaJob& job_;
  std::byte** const windows_;
  const int local_rank_;
  const int channel_;
};

}  // namespace dcomm
