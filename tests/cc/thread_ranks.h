// Ranks that are threads of this process: windows on the heap, and for every rank num_channels x num_lanes threads
// that run operations on the host executor, as the threads of so many CUDA blocks would.
#pragma once

#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "launch/host_launch.h"
#include "memory/windows.h"
#include "protocol/fingerprint.h"
#include "visible_kernels.h"

namespace dcomm::checks {

struct GroupConfig {
  int world_size = 2;
  PlacementKind placement = PlacementKind::kBounce;
  int depth = 2;
  int num_channels = 1;
  int num_lanes = 1;
  size_t slot_bytes = 1024;
  size_t fifo_slot_bytes = 1024;  // of the fifo, exchange, pair and message pools
  size_t packet_bytes = kPacketGrain;
  int64_t timeout_ns = 10'000'000'000;  // so that a lost message is a failed check and not a hang
  // More threads than cores: spinning would only keep the awaited one from running.
  WaitPolicy policy{0, 100'000, true};
  bool failure_tells_peers = true;  // as the Communicator does
  int64_t warn_ns = 60'000'000'000;
  InterruptCheck interrupted = nullptr;
  StallWarning stalled = nullptr;
  void* argument = nullptr;
};

/// One rank's part in an operation.
struct RankCall : CollectiveCall {
  bool is_absent = false;  // the rank stops before this operation
  uint64_t salt = 0;       // changes the fingerprint only
  int delay_ms = 0;        // the rank comes late
};

/// Arrays of all ranks as one more kind of windows: the ranks are threads, so each reaches all.
class ArrayWindows final : public Windows {
 public:
  explicit ArrayWindows(std::vector<std::byte*> bases) { bases_ = std::move(bases); }
};

/// Lets the ranks reduce the arrays of their calls where they lie.
inline void share_arrays(std::vector<RankCall>& calls) {
  std::vector<std::byte*> ins, outs;
  for (const RankCall& call : calls) {
    ins.push_back(static_cast<std::byte*>(const_cast<void*>(call.in)));
    outs.push_back(static_cast<std::byte*>(call.out));
  }
  const auto in_windows = std::make_shared<ArrayWindows>(ins), out_windows = std::make_shared<ArrayWindows>(outs);
  for (RankCall& call : calls) {
    call.shared_in.windows = in_windows;
    call.shared_out.windows = out_windows;
  }
}

/// Lets the ranks read each other's inputs where they lie: each at another place of one region. Of kAuto calls `turn`
/// says who does not: nobody, a rank that has its array elsewhere, or one that has it in another region.
inline void lend_inputs(std::vector<RankCall>& calls, size_t turn) {
  constexpr size_t kStep = 64;
  std::vector<std::byte*> bases;
  for (const RankCall& call : calls) {
    auto* const in = static_cast<std::byte*>(const_cast<void*>(call.in));
    bases.push_back(in - kStep * bases.size());
  }
  const auto windows = std::make_shared<ArrayWindows>(bases);
  for (size_t rank = 0; rank < calls.size(); ++rank) calls[rank].shared_in = {windows, 1, kStep * rank, {}};
  if (calls[0].algo != Algo::kAuto || turn % 3 == 0) return;
  SharedArray& odd = calls[turn % calls.size()].shared_in;
  if (turn % 3 == 1) odd = {};
  if (turn % 3 == 2) odd.region = 2;
}

/// How one rank fared.
struct Outcome {
  dcomm::Failure failure;  // kOk where all went well
  size_t num_completed = 0;
};

class ThreadRanks {
 public:
  explicit ThreadRanks(const GroupConfig& config) : config_(config) {
    WindowLayout layout{{config.placement, config.world_size, config.depth},
                        config.num_channels,
                        {config.slot_bytes, config.fifo_slot_bytes, config.fifo_slot_bytes, config.fifo_slot_bytes,
                         config.fifo_slot_bytes, 0},
                        config.packet_bytes};
    layout.direct_bytes = config.slot_bytes;
    const auto windows = make_heap_windows(config.world_size, layout.window_bytes());
    for (int rank = 0; rank < config.world_size; ++rank) {
      contexts_.push_back(std::make_unique<HostContext>(rank, windows, layout));
    }
  }

  HostContext& context(int rank) { return *contexts_[static_cast<size_t>(rank)]; }
  uint64_t next_seq() const { return seq_ + 1; }

  /// Runs calls[operation][rank] back to back; returns the outcomes by rank. `meanwhile` runs in the calling thread.
  template <class F>
  std::vector<Outcome> run(const std::vector<std::vector<RankCall>>& calls, F&& meanwhile) {
    std::vector<std::unique_ptr<Rank>> ranks;
    for (int rank = 0; rank < config_.world_size; ++rank) ranks.push_back(make_rank(rank, calls));
    seq_ += calls.size();
    std::vector<std::thread> threads;
    for (auto& rank : ranks) {
      for (int channel = 0; channel < config_.num_channels; ++channel) {
        for (int lane = 0; lane < config_.num_lanes; ++lane) {
          threads.emplace_back([this, &rank, channel, lane] { run_lane_thread(*rank, channel, lane); });
        }
      }
    }
    meanwhile();
    for (std::thread& thread : threads) thread.join();
    std::vector<Outcome> outcomes;
    for (auto& rank : ranks) outcomes.push_back(rank->outcome);
    return outcomes;
  }
  std::vector<Outcome> run(const std::vector<std::vector<RankCall>>& calls) {
    return run(calls, [] {});
  }

 private:
  struct Step {
    CollectiveCall call;
    HostKernels kernels;
    ChunkPlan plan;
    HostOp op;
    OpRecord record;
    int delay_ms = 0;
  };
  struct Rank {
    explicit Rank(int num_threads) : all(num_threads) {}
    HostContext* context = nullptr;
    std::vector<std::unique_ptr<Step>> steps;
    std::vector<std::unique_ptr<LaneBarrier>> lanes;  // by channel
    std::barrier<> all;
    Outcome outcome;
  };

  std::unique_ptr<Rank> make_rank(int rank, const std::vector<std::vector<RankCall>>& calls) {
    auto made = std::make_unique<Rank>(config_.num_channels * config_.num_lanes);
    made->context = &context(rank);
    for (int channel = 0; channel < config_.num_channels; ++channel) {
      made->lanes.push_back(std::make_unique<LaneBarrier>(config_.num_lanes));
    }
    for (size_t i = 0; i < calls.size(); ++i) {
      const RankCall& call = calls[i][static_cast<size_t>(rank)];
      if (call.is_absent) break;
      auto step = std::make_unique<Step>();
      step->call = in_components(call);
      step->kernels = bind_kernels(step->call, config_.world_size, thread_kernels());
      step->plan = plan_call(step->call, made->context->layout);
      step->record.seq = seq_ + 1 + i;
      step->record.count = call.count;
      step->record.collective = call.collective;
      step->record.algo = call.algo;
      step->record.dtype = call.dtype;
      step->record.wire = call.wire;
      step->record.op = call.op;
      step->record.root = call.root;
      step->record.in_region = call.shared_in.region;
      step->record.in_offset = call.shared_in.offset;
      step->op.seq = step->record.seq;
      step->op.hash = fingerprint(step->record) ^ call.salt;
      step->op.policy = config_.policy;
      step->op.timeout_ns = config_.timeout_ns;
      step->op.warn_ns = config_.warn_ns;
      step->op.interrupted = config_.interrupted;
      step->op.stalled = config_.stalled;
      step->op.argument = config_.argument;
      step->delay_ms = call.delay_ms;
      made->steps.push_back(std::move(step));
    }
    return made;
  }

  void run_lane_thread(Rank& rank, int channel, int lane) {
    const bool leads = channel == 0 && lane == 0;
    LaneScratch scratch(*rank.context);
    for (const auto& step : rank.steps) {
      if (leads && step->delay_ms != 0) std::this_thread::sleep_for(std::chrono::milliseconds(step->delay_ms));
      if (leads) {
        store_record(rank.context->control(rank.context->rank).records[step->op.seq % 2], step->record);
        begin_operation(*rank.context, step->op.seq, step->op.hash);
      }
      rank.all.arrive_and_wait();
      HostExec exec(*rank.context, step->op, *rank.lanes[static_cast<size_t>(channel)], channel, lane, scratch);
      run_lane(exec, step->call, step->kernels, step->plan);
      rank.all.arrive_and_wait();
      if (step->op.failed.load(std::memory_order_acquire)) {
        if (leads) fail(rank, step->op);
        return;
      }
      if (!leads) continue;
      ++rank.outcome.num_completed;
      std::atomic_ref<uint64_t>(rank.context->control(rank.context->rank).header.completed)
          .store(step->op.seq, std::memory_order_release);
    }
  }

  void fail(Rank& rank, const HostOp& op) const {
    rank.outcome.failure = op.failure;
    if (!config_.failure_tells_peers) return;
    AbortReason reason;
    reason.code = op.failure.code;
    reason.reporter = static_cast<uint16_t>(op.failure.reporter);
    reason.culprit = static_cast<uint16_t>(op.failure.culprit);
    reason.detail = static_cast<uint8_t>(op.failure.detail);
    reason.seq = static_cast<uint32_t>(op.seq);
    broadcast_abort(*rank.context, reason);
  }

  const GroupConfig config_;
  std::vector<std::unique_ptr<HostContext>> contexts_;
  uint64_t seq_ = 0;
};

}  // namespace dcomm::checks
