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

#include "exec/cuda_intrinsics.cuh"
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

/// Messages so far, by Counter; one per (local rank, channel), in device memory.
struct alignas(kFlagBytes) CudaCounters {
  uint64_t value[kNumGroupCounters];
};

struct CudaArrays {
  const void* in;  // plan.count elements; may be equal to out
  void* out;
};

/// The arguments of a launch: grid (num_channels, local ranks), rank = first_rank + blockIdx.y.
struct CudaJob {
  int first_rank;
  int world_size;
  int num_channels;
  float divisor;  // what an average divides by; 1 for a sum
  size_t slot_bytes;
  uint64_t timeout_ns;        // of each wait
  std::byte* const* windows;  // device memory: world_size window addresses, as this GPU maps them
  CudaCounters* counters;     // device memory: [local rank][channel]
  uint32_t* abort;            // mapped host memory: nonzero tells every wait to end
  uint64_t* error;            // mapped host memory: the first failure, as packed by cuda_failure_word
  ChunkPlan plan;
  CudaArrays arrays[kMaxLocalRanks];
};

DCOMM_HOST_DEVICE constexpr WindowLayout cuda_window_layout(int world_size, int num_channels, size_t slot_bytes) {
  return WindowLayout{Placement{PlacementKind::kPush, world_size, kCudaDepth}, num_channels, {slot_bytes}, 0};
}

/// [code 8 | flow 8 | rank 16 | peer 16 | low bits of the edge's message number 16]
DCOMM_HOST_DEVICE constexpr uint64_t cuda_failure_word(ErrorCode code, Flow flow, int rank, int peer, uint64_t seq) {
  return (static_cast<uint64_t>(code) << 56) | (static_cast<uint64_t>(flow) << 48) |
         ((static_cast<uint64_t>(rank) & 0xffffu) << 32) | ((static_cast<uint64_t>(peer) & 0xffffu) << 16) |
         (seq & 0xffffu);
}

class CudaBlockExec {
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
  DCOMM_DEVICE int lane() const { return gpu::thread_index(); }
  DCOMM_DEVICE static constexpr int num_lanes() { return gpu::kBlockThreads; }
  DCOMM_DEVICE void sync() const { gpu::block_sync(); }
  DCOMM_DEVICE bool any(bool mine) const { return gpu::block_any(mine); }

  /// load(i) for kUnroll packs of this lane, then use(i, what was loaded) for each: so many loads are in flight.
  template <int kUnroll, class Load, class Use>
  DCOMM_DEVICE void for_each_pack(uint32_t num_packs, const Load& load, const Use& use) const {
    constexpr uint32_t kStride = static_cast<uint32_t>(num_lanes());
    for (uint32_t i = static_cast<uint32_t>(lane()); i < num_packs; i += kUnroll * kStride) {
      decltype(load(i)) loaded[kUnroll];
      DCOMM_UNROLL
      for (int k = 0; k < kUnroll; ++k) {
        const uint32_t at = i + static_cast<uint32_t>(k) * kStride;
        if (k == 0 || at < num_packs) loaded[k] = load(at);
      }
      DCOMM_UNROLL
      for (int k = 0; k < kUnroll; ++k) {
        const uint32_t at = i + static_cast<uint32_t>(k) * kStride;
        if (k == 0 || at < num_packs) use(at, loaded[k]);
      }
    }
  }

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

  DCOMM_DEVICE uint64_t load_counter(Counter counter) const { return *counter_at(counter); }
  DCOMM_DEVICE void store_counter(Counter counter, uint64_t value) {
    sync();  // every thread has read the old value
    if (lane() == 0) *counter_at(counter) = value;
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
  DCOMM_DEVICE uint64_t* counter_at(Counter counter) const {
    CudaCounters* const counters = job_.counters + static_cast<size_t>(local_rank_) * job_.num_channels + channel_;
    return &counters->value[static_cast<int>(counter)];
  }

  // One-to-many flows (broadcast) have no kernel yet: they need a counter per root and credits of their own.
  DCOMM_DEVICE static constexpr Flow credit_flow(Flow) { return Flow::kRingCredit; }
  DCOMM_DEVICE static constexpr bool needs_credit(Flow flow) { return flow == Flow::kRing; }

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
