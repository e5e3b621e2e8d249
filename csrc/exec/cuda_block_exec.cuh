// The CUDA executor: one rank's one channel is one thread block. Floor: exec.
//
// Push placement: data and flags are written into the receiver's window and read locally, so every poll is local.
// publish: all threads have stored -> block barrier -> one thread releases; cumulative over the barrier.
// arrive:  one thread polls, then acquires once -> block barrier -> all threads read with plain loads.
// Message counters live in device memory and are read at the kernel's start and stored at its end, so that a
// kernel has no argument that changes from call to call.
//
// A wait that fails stores why in the group's error word (first one wins), raises every rank's abort line and
// returns; the block leaves, the kernel ends normally and the CUDA context stays usable. The group does not.
#pragma once

#include "exec/cuda_lanes.cuh"
#include "protocol/control.h"
#include "protocol/exec.h"
#include "schedule/partition.h"
#include "schedule/window_layout.h"

namespace dcomm {

/// Ranks that one launch can hold; their arrays travel as kernel arguments. Fewer fit where the GPU has fewer
/// multiprocessors.
inline constexpr int kMaxLocalRanks = 128;
/// Slots of each kind: one is filled while the other is in use.
inline constexpr int kCudaDepth = 2;

/// Packets of one sender's message on one channel: one for each thread of a block.
inline constexpr size_t kCudaPacketBytes =
    round_up(static_cast<size_t>(gpu::kBlockThreads) * sizeof(gpu::FlaggedPacket), kPacketGrain);

/// Their data.
inline constexpr size_t kCudaPacketDataBytes = kCudaPacketBytes / 4 * 3;

/// Words of message counters of one (local rank, channel), in device memory: whole lines, by cuda_counter_index.
DCOMM_HOST_DEVICE constexpr size_t cuda_counter_words(int world_size) {
  return round_up(kNumGroupCounters + kNumPeerCounters * static_cast<size_t>(world_size),
                  kFlagBytes / sizeof(uint64_t));
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
  float divisor;  // what an average divides by; 1 for a sum
  size_t slot_bytes;
  uint64_t timeout_ns;        // of each wait
  std::byte* const* windows;  // device memory: world_size window addresses, as this GPU maps them
  uint64_t* counters;         // device memory: [local rank][channel][cuda_counter_words]
  uint32_t* abort;            // mapped host memory: nonzero tells every wait to end
  uint64_t* error;            // mapped host memory: the first failure, as packed by cuda_failure_word
  ChunkPlan plan;
  CudaArrays arrays[kMaxLocalRanks];
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

class CudaBlockExec : public CudaLanes {
 public:
  /// All threads. windows: shared memory of world_size pointers, filled here.
  DCOMM_DEVICE CudaBlockExec(const CudaJob& job, int local_rank, int channel, std::byte** windows)
      : job_(job), windows_(windows), local_rank_(local_rank), channel_(channel) {
    DCOMM_ROLLED
    for (int r = lane(); r < world_size(); r += num_lanes()) windows[r] = job.windows[r];
    sync();
  }

  DCOMM_DEVICE int rank() const { return job_.first_rank + local_rank_; }
  DCOMM_DEVICE int world_size() const { return job_.world_size; }
  DCOMM_DEVICE int channel() const { return channel_; }
  DCOMM_DEVICE void sync() const { gpu::block_sync(); }
  DCOMM_DEVICE bool any(bool mine) const { return gpu::block_any(mine); }

  DCOMM_DEVICE std::byte* outbox(Edge edge, uint64_t seq) const { return slot(edge.flow, rank(), edge.peer, seq); }
  DCOMM_DEVICE std::byte* inbox(Edge edge, uint64_t seq) const { return slot(edge.flow, edge.peer, rank(), seq); }

  DCOMM_DEVICE std::byte* acquire(Edge edge, uint64_t seq) {
    if (needs_credit(edge.flow) && seq >= kCudaDepth && !wait(edge.peer, credit_flow(edge.flow), seq - kCudaDepth)) {
      return nullptr;
    }
    return outbox(edge, seq);
  }
  DCOMM_DEVICE void publish(Edge edge, uint64_t seq) {
    sync();
    if (lane() == 0) gpu::store_release(flag_at(edge.peer, edge.flow), seq + 1);
  }
  DCOMM_DEVICE std::byte* arrive(Edge edge, uint64_t seq) {
    return wait(edge.peer, edge.flow, seq) ? inbox(edge, seq) : nullptr;
  }
  /// The credit is a release too: the slot's readers come before its next writer.
  DCOMM_DEVICE void release(Edge edge, uint64_t seq) {
    sync();
    if (lane() == 0 && needs_credit(edge.flow)) {
      gpu::store_release(flag_at(edge.peer, credit_flow(edge.flow)), seq + 1);
    }
  }
  /// One fence for two flags: each st.release would bring a fence of its own.
  DCOMM_DEVICE void publish_and_release(Edge out, uint64_t out_seq, Edge in, uint64_t in_seq) {
    sync();
    if (lane() != 0) return;
    gpu::fence_acq_rel();
    gpu::store_relaxed(flag_at(out.peer, out.flow), out_seq + 1);
    if (needs_credit(in.flow)) gpu::store_relaxed(flag_at(in.peer, credit_flow(in.flow)), in_seq + 1);
  }
  DCOMM_DEVICE void signal_all(Flow flow, uint64_t seq) {
    sync();
    DCOMM_ROLLED
    for (int peer = lane(); peer < world_size(); peer += num_lanes()) {
      if (peer != rank()) gpu::store_release(flag_at(peer, flow), seq + 1);
    }
  }
  /// Thread p polls for peer p.
  DCOMM_DEVICE bool wait_all(Flow flow, uint64_t seq) {
    bool failed = false;
    DCOMM_ROLLED
    for (int peer = lane(); peer < world_size() && !failed; peer += num_lanes()) {
      if (peer != rank()) failed = !wait_flag(peer, flow, seq);
    }
    return !any(failed);
  }

  DCOMM_DEVICE uint64_t load_counter(Counter counter, int peer = 0) const { return *counter_at(counter, peer); }
  DCOMM_DEVICE void store_counter(Counter counter, uint64_t value, int peer = 0) {
    sync();  // every thread has read the old value
    if (lane() == 0) *counter_at(counter, peer) = value;
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
    const uint32_t flag = cuda_packet_flag(seq);
    if (DCOMM_LIKELY(packet.flag == flag)) return true;
    const gpu::FlaggedPacket* const from = packet_at(rank(), peer, seq, index);
    uint64_t deadline = 0;
    for (uint32_t polls = 1;; ++polls) {
      packet = gpu::load_packet(from);
      if (packet.flag == flag) return true;
      if (polls % gpu::kPollsPerCheck != 0) continue;
      const ErrorCode code = look_around(deadline);
      if (code == ErrorCode::kOk) continue;
      packet = gpu::load_packet(from);  // what was sent before the abort counts
      if (packet.flag == flag) return true;
      fail(code, peer, Flow::kPacket, seq);
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
  DCOMM_DEVICE uint32_t* attention(int window) const {
    return &reinterpret_cast<ControlPage*>(windows_[window])->abort.attention;
  }
  DCOMM_DEVICE uint64_t* counter_at(Counter counter, int peer) const {
    const size_t row =
        static_cast<size_t>(local_rank_) * static_cast<size_t>(job_.num_channels) + static_cast<size_t>(channel_);
    return job_.counters + row * cuda_counter_words(world_size()) + cuda_counter_index(counter, peer, world_size());
  }
  DCOMM_DEVICE gpu::FlaggedPacket* packet_at(int window, int from, uint64_t seq, uint32_t index) const {
    std::byte* const first = windows_[window] + layout().packet_offset(channel_, static_cast<int>(seq % 2), from);
    return reinterpret_cast<gpu::FlaggedPacket*>(first) + index;
  }
  DCOMM_DEVICE bool needs_credit(Flow flow) const { return layout().placement.needs_credit(flow); }

  /// All threads; thread 0 polls.
  DCOMM_DEVICE bool wait(int peer, Flow flow, uint64_t seq) {
    const bool failed = lane() == 0 && !wait_flag(peer, flow, seq);
    return !any(failed);
  }

  /// One thread. Acquire on success.
  DCOMM_DEVICE bool wait_flag(int peer, Flow flow, uint64_t seq) {
    const uint64_t* const value = flag(rank(), flow, peer);
    const uint64_t target = seq + 1;
    uint64_t deadline = 0;
    for (uint32_t polls = 1; gpu::load_relaxed(value) < target; ++polls) {
      if (polls % gpu::kPollsPerCheck != 0) continue;
      const ErrorCode code = look_around(deadline);
      if (code == ErrorCode::kOk) continue;
      if (gpu::load_acquire(value) >= target) return true;  // what was published before the abort counts
      fail(code, peer, flow, seq);
      return false;
    }
    gpu::load_acquire(value);
    return true;
  }

  /// Whether a wait must end. The deadline starts at its first look.
  DCOMM_DEVICE ErrorCode look_around(uint64_t& deadline) const {
    if (gpu::load_relaxed(attention(rank())) != 0 || gpu::load_relaxed(job_.abort) != 0) return ErrorCode::kAborted;
    const uint64_t now = gpu::now_ns();
    if (deadline == 0) deadline = now + job_.timeout_ns;
    return now >= deadline ? ErrorCode::kTimeout : ErrorCode::kOk;
  }

  DCOMM_DEVICE void fail(ErrorCode code, int peer, Flow flow, uint64_t seq) const {
    gpu::set_once(job_.error, cuda_failure_word(code, flow, rank(), peer, seq));
    gpu::fence_acq_rel();  // whoever leaves because of this must find the word set
    gpu::store_relaxed(job_.abort, 1u);
    DCOMM_ROLLED
    for (int r = 0; r < world_size(); ++r) gpu::store_relaxed(attention(r), 1u);
  }

  const CudaJob& job_;
  std::byte** const windows_;
  const int local_rank_;
  const int channel_;
};

}  // namespace dcomm
