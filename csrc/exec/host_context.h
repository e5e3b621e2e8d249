// A rank's view of its communicator on the host: windows, counters, who has left. Floor: exec.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "memory/windows.h"
#include "protocol/control.h"
#include "protocol/exec.h"
#include "schedule/window_layout.h"

namespace dcomm {

/// How a wait passes the time: poll, then offer the core, then sleep on the flag's futex.
struct WaitPolicy {
  int64_t spin_ns = 0;    // poll with `pause`; cut short while polling keeps failing, see SpinHistory
  int64_t yield_ns = 0;   // then sched_yield between polls
  bool may_move = false;  // leave a CPU shared with the awaited rank before sleeping (ranks <= CPUs)
  bool shared = false;    // ranks share CPUs: no polling while the awaited one was last seen on this very CPU
};

/// Whether polling has paid lately. It must outlast a futex wake, or one late rank makes both sides sleep
/// in every wait from then on; but on a busy machine a spinner uses up the time slice that its peer needs.
class SpinHistory {
 public:
  int64_t budget_ns(int64_t full_ns) const {
    const uint32_t failures = load();
    return failures < kPatience || failures % kRetryEvery == 0 ? full_ns : kShortNs < full_ns ? kShortNs : full_ns;
  }
  bool failing_for_long() const { return load() > 2 * kPatience; }
  void note(bool arrived_while_polling) {
    std::atomic_ref<uint32_t>(failures_).store(arrived_while_polling ? 0 : load() + 1, std::memory_order_relaxed);
  }

 private:
  static constexpr uint32_t kPatience = 3;
  static constexpr uint32_t kRetryEvery = 16;
  static constexpr int64_t kShortNs = 2'000;
  uint32_t load() const {
    return std::atomic_ref<uint32_t>(const_cast<uint32_t&>(failures_)).load(std::memory_order_relaxed);
  }
  uint32_t failures_ = 0;  // consecutive; a hint, so lanes may lose an update
};

/// Messages of each flow so far; equal on all ranks between operations.
class ChannelCounters {
 public:
  explicit ChannelCounters(int world_size)
      : world_size_(static_cast<size_t>(world_size)),
        values_(kNumGroupCounters + kNumPeerCounters * static_cast<size_t>(world_size)) {}

  void set_all(uint64_t value) { std::fill(values_.begin(), values_.end(), value); }

  uint64_t& at(Counter counter, int peer) {
    const auto number = static_cast<size_t>(counter);
    if (number < kNumGroupCounters) return values_[number];
    return values_[kNumGroupCounters + (number - kNumGroupCounters) * world_size_ + static_cast<size_t>(peer)];
  }

 private:
  size_t world_size_;
  std::vector<uint64_t> values_;
};

/// Peers that are gone, as the liveness thread saw it; read by waits that were told to look.
class PeerExits {
 public:
  explicit PeerExits(int world_size) : exits_(static_cast<size_t>(world_size)) {}
  void set(int rank, AbortDetail how) {
    exits_[static_cast<size_t>(rank)].store(static_cast<uint8_t>(how), std::memory_order_release);
  }
  AbortDetail get(int rank) const {
    return static_cast<AbortDetail>(exits_[static_cast<size_t>(rank)].load(std::memory_order_acquire));
  }

 private:
  std::vector<std::atomic<uint8_t>> exits_;
};

struct HostContext {
  int rank = 0;
  int world_size = 1;
  WindowLayout layout;
  std::shared_ptr<Windows> windows;
  std::vector<ChannelCounters> counters;        // by channel
  std::vector<std::atomic<int64_t>> waited_ns;  // by peer: in waits that outlasted a first look of about 1 us
  std::shared_ptr<PeerExits> exits;
  SpinHistory spin_history;
  std::atomic<int64_t> next_spread_ns{0};  // for spread_over_cpus

  HostContext(int rank_, std::shared_ptr<Windows> windows_, const WindowLayout& layout_)
      : rank(rank_),
        world_size(layout_.placement.world_size),
        layout(layout_),
        windows(std::move(windows_)),
        counters(static_cast<size_t>(layout_.num_channels), ChannelCounters(layout_.placement.world_size)),
        waited_ns(static_cast<size_t>(layout_.placement.world_size)),
        exits(std::make_shared<PeerExits>(layout_.placement.world_size)) {}

  /// Makes `first` the number of the operation and of the messages before the first ones: a long life's numbers from
  /// the start. All ranks alike, before anybody begins an operation. A multiple of 8: slots go by such turns.
  void start_after(uint64_t first);

  /// The first of the packets that `from` sends to `window`.
  PacketLine* packets(int window, int channel, int parity, int from) const {
    return reinterpret_cast<PacketLine*>(windows->at(window) + layout.packet_offset(channel, parity, from));
  }
  ControlPage& control(int of_rank) const { return *reinterpret_cast<ControlPage*>(windows->at(of_rank)); }
  Flag& flag(int window, int channel, Flow flow, int from) const {
    return *reinterpret_cast<Flag*>(windows->at(window) + layout.flag_offset(channel, flow, from));
  }
};

/// Reads and writes the records that lie in the windows, word by word (peers may look at any time).
void store_record(OpRecord& to, const OpRecord& record);
OpRecord load_record(const OpRecord& from);
/// Tells the peers, in this rank's header, that it enters operation `seq`; before anything else of the operation.
void begin_operation(const HostContext& context, uint64_t seq, uint64_t hash);
/// Publishes `reason` to every rank (the first one of the earliest operation wins) and wakes whoever sleeps.
void broadcast_abort(const HostContext& context, const AbortReason& reason);
/// Makes `rank`'s waits look at its abort line and at its PeerExits.
void raise_attention(const HostContext& context, int rank);
/// Wakes every thread that sleeps on a flag of `rank`'s window.
void wake_sleepers(const HostContext& context, int rank);

}  // namespace dcomm
