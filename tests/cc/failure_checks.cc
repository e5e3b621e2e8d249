// Every wait ends, and says why: by abort, by a peer's exit, by its deadline, by disagreement, by an interrupt.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "collective_workload.h"

namespace dcomm::checks {
namespace {

// Long beside the time that a loaded machine keeps a thread waiting for a core.
constexpr int64_t kShortTimeoutNs = 250'000'000;

using Calls = std::vector<std::vector<RankCall>>;

enum class Kind {
  kRing,
  kTwoShot,
  kOneShot,
  kPackets,
  kTree,
  kDirect,
  kReduceScatterDirect,
  kAllGatherDirect,
  kReduceScatter,
  kAllGather,
  kAllToAll,
  kBarrier,
  kBroadcast,
  kScatter,
  kReduce,
  kReduceToFirst,
  kGatherToFirst,
};
// In these everyone hears from everyone, at least by way of others.
constexpr Kind kMutualKinds[] = {Kind::kRing,
                                 Kind::kTwoShot,
                                 Kind::kOneShot,
                                 Kind::kPackets,
                                 Kind::kTree,
                                 Kind::kDirect,
                                 Kind::kReduceScatterDirect,
                                 Kind::kAllGatherDirect,
                                 Kind::kReduceScatter,
                                 Kind::kAllGather,
                                 Kind::kAllToAll,
                                 Kind::kBarrier};
constexpr Kind kKinds[] = {Kind::kRing,
                           Kind::kTwoShot,
                           Kind::kOneShot,
                           Kind::kPackets,
                           Kind::kTree,
                           Kind::kDirect,
                           Kind::kReduceScatterDirect,
                           Kind::kAllGatherDirect,
                           Kind::kReduceScatter,
                           Kind::kAllGather,
                           Kind::kAllToAll,
                           Kind::kBarrier,
                           Kind::kBroadcast,
                           Kind::kScatter,
                           Kind::kReduce,
                           Kind::kReduceToFirst,
                           Kind::kGatherToFirst};

CollectiveCase case_of(Kind kind, int world_size, size_t count) {
  struct Way {
    Collective collective;
    Algo algo = Algo::kFlat;
  };
  constexpr Way kWays[] = {
      {Collective::kAllReduce, Algo::kRing},
      {Collective::kAllReduce, Algo::kTwoShot},
      {Collective::kAllReduce, Algo::kOneShot},
      {Collective::kAllReduce, Algo::kOneShot},
      {Collective::kAllReduce, Algo::kTree},
      {Collective::kAllReduce, Algo::kDirect},
      {Collective::kReduceScatter, Algo::kDirect},
      {Collective::kAllGather, Algo::kDirect},
      {Collective::kReduceScatter},
      {Collective::kAllGather},
      {Collective::kAllToAll},
      {Collective::kBarrier},
      {Collective::kBroadcast},
      {Collective::kScatter},
      {Collective::kReduce},
      {Collective::kReduce},
      {Collective::kGather},
  };
  const Way& way = kWays[static_cast<size_t>(kind)];
  CollectiveCase what;
  what.collective = way.collective;
  what.what.algo = way.algo;
  what.count = kind == Kind::kPackets ? std::min(count, kPacketGrain / kLineBytes * kPacketPayloadBytes / 4) : count;
  what.root = kind == Kind::kReduceToFirst || kind == Kind::kGatherToFirst ? 0 : world_size - 1;
  return what;
}

/// One operation of each rank.
void add(Workload& workload, Random& random, Kind kind, int world_size, size_t count = 300) {
  add_collective(workload, random, case_of(kind, world_size, count), world_size);
}

/// A group whose threads take part in every way of waiting.
GroupConfig group(int world_size, PlacementKind placement) {
  GroupConfig config;
  config.world_size = world_size;
  config.placement = placement;
  config.num_channels = 2;
  config.num_lanes = 2;
  config.slot_bytes = 128;
  config.fifo_slot_bytes = 128;
  return config;
}

void expect_failure(const Outcome& outcome, ErrorCode code, int culprit, const std::string& what) {
  EXPECT_MSG(outcome.failure.code == code && outcome.failure.culprit == culprit,
             what + ": code " + std::to_string(static_cast<int>(outcome.failure.code)) + " culprit " +
                 std::to_string(outcome.failure.culprit) + ", expected code " + std::to_string(static_cast<int>(code)) +
                 " culprit " + std::to_string(culprit));
}

void make_absent(Calls& calls, size_t operation, int rank) {
  calls[operation][static_cast<size_t>(rank)].is_absent = true;
}

void tell_exit(ThreadRanks& ranks, int world_size, int gone, AbortDetail how) {
  for (int rank = 0; rank < world_size; ++rank) {
    if (rank == gone) continue;
    ranks.context(rank).exits->set(gone, how);
    raise_attention(ranks.context(rank), rank);
    wake_sleepers(ranks.context(rank), rank);
  }
}

void wait_completed(ThreadRanks& ranks, int rank, uint64_t seq) {
  uint64_t& completed = ranks.context(rank).control(rank).header.completed;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::atomic_ref<uint64_t>(completed).load(std::memory_order_acquire) < seq) {
    EXPECT(std::chrono::steady_clock::now() < deadline);
    std::this_thread::yield();
  }
}

std::string name_of(Kind kind, const GroupConfig& config, int rank) {
  return "kind " + std::to_string(static_cast<int>(kind)) + " rank " + std::to_string(rank) + " " + describe(config);
}

}  // namespace

CHECK_CASE(failure_abort_ends_every_wait) {
  Random random(21);
  const WaitPolicy policies[] = {{0, 0, false}, {1'000'000'000, 0, false}, {0, 50'000, true}};
  size_t next_policy = 0;
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const Kind kind : kKinds) {
      GroupConfig config = group(4, placement);
      config.policy = policies[next_policy++ % std::size(policies)];
      Workload workload(4);
      add(workload, random, kind, 4);
      Calls calls = workload.calls();
      make_absent(calls, 0, 3);
      ThreadRanks ranks(config);
      const std::vector<Outcome> outcomes = ranks.run(calls, [&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        AbortReason reason;
        reason.code = ErrorCode::kAborted;
        reason.reporter = 3;
        reason.culprit = 3;
        broadcast_abort(ranks.context(3), reason);
      });
      for (int rank = 0; rank < 3; ++rank) {
        const Outcome& outcome = outcomes[static_cast<size_t>(rank)];
        expect_failure(outcome, ErrorCode::kAborted, 3, name_of(kind, config, rank));
        EXPECT_EQ(outcome.failure.reporter, 3);
      }
    }
  }
}

// A rank may fail in an operation that others reached only after finishing this one: that is not our failure.
CHECK_CASE(failure_of_an_earlier_operation_replaces_that_of_a_later_one) {
  ThreadRanks ranks(group(2, PlacementKind::kBounce));
  const auto broadcast = [&](ErrorCode code, uint32_t seq) {
    AbortReason reason;
    reason.code = code;
    reason.seq = seq;
    broadcast_abort(ranks.context(0), reason);
  };
  const auto expect_reason = [&](ErrorCode code, uint32_t seq) {
    for (int rank = 0; rank < 2; ++rank) {
      const uint64_t word =
          std::atomic_ref<uint64_t>(ranks.context(0).control(rank).abort.reason).load(std::memory_order_acquire);
      EXPECT(AbortReason::unpack(word).code == code);
      EXPECT_EQ(AbortReason::unpack(word).seq, seq);
    }
  };
  broadcast(ErrorCode::kTimeout, 0x10001);  // 16 bits are kept: 1, after 0xffff
  expect_reason(ErrorCode::kTimeout, 1);
  broadcast(ErrorCode::kPeerLost, 0x10002);
  expect_reason(ErrorCode::kTimeout, 1);
  broadcast(ErrorCode::kMismatch, 0xffff);
  expect_reason(ErrorCode::kMismatch, 0xffff);
  broadcast(ErrorCode::kPeerLost, 0xffff);  // the first one of an operation stays
  broadcast(ErrorCode::kAborted, 0);        // and no abort takes its place
  expect_reason(ErrorCode::kMismatch, 0xffff);
}

CHECK_CASE(failure_of_later_operation_is_not_ours) {
  Random random(22);
  GroupConfig config = group(3, PlacementKind::kBounce);
  Workload workload(3);
  for (const Kind kind : kKinds) add(workload, random, kind, 3);
  Calls calls = workload.calls();
  for (auto& operation : calls) operation[1].delay_ms = 5;  // the others do wait
  ThreadRanks ranks(config);
  AbortReason reason;
  reason.code = ErrorCode::kPeerLost;
  reason.seq = static_cast<uint32_t>(ranks.next_seq() + calls.size());
  broadcast_abort(ranks.context(0), reason);
  for (const Outcome& outcome : ranks.run(calls)) EXPECT(outcome.failure.code == ErrorCode::kOk);
  EXPECT_EQ(workload.problem(), std::string());
}

CHECK_CASE(failure_peer_exit_ends_every_wait) {
  Random random(23);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const Kind kind : kKinds) {
      GroupConfig config = group(4, placement);
      config.failure_tells_peers = false;  // each finds out by itself
      config.policy = {0, 0, false};
      Workload workload(4);
      add(workload, random, kind, 4);
      Calls calls = workload.calls();
      make_absent(calls, 0, 3);
      ThreadRanks ranks(config);
      const std::vector<Outcome> outcomes = ranks.run(calls, [&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        tell_exit(ranks, 4, 3, AbortDetail::kDied);
      });
      for (int rank = 0; rank < 3; ++rank) {
        const Outcome& outcome = outcomes[static_cast<size_t>(rank)];
        expect_failure(outcome, ErrorCode::kPeerLost, 3, name_of(kind, config, rank));
        EXPECT(outcome.failure.detail == AbortDetail::kDied);
        EXPECT_EQ(outcome.failure.reporter, rank);
      }
    }
  }
}

// Goodbye: the root leaves before its peers have begun to read; what it completed still counts.
CHECK_CASE(failure_exit_after_broadcast_fails_the_next_only) {
  Random random(24);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    GroupConfig config = group(3, placement);
    config.failure_tells_peers = false;
    Workload workload(3);
    workload.add_broadcast(random, DType::kF32, 60, 2);
    Workload next(3);
    next.add_barrier();
    Calls calls = workload.calls();
    calls.push_back(next.calls()[0]);
    for (int rank = 0; rank < 2; ++rank) calls[0][static_cast<size_t>(rank)].delay_ms = 30;
    make_absent(calls, 1, 2);
    ThreadRanks ranks(config);
    const uint64_t seq = ranks.next_seq();
    const std::vector<Outcome> outcomes = ranks.run(calls, [&] {
      wait_completed(ranks, 2, seq);
      tell_exit(ranks, 3, 2, AbortDetail::kLeft);
    });
    EXPECT_EQ(workload.problem(), std::string());
    for (int rank = 0; rank < 2; ++rank) {
      const Outcome& outcome = outcomes[static_cast<size_t>(rank)];
      EXPECT_EQ(outcome.num_completed, size_t{1});
      expect_failure(outcome, ErrorCode::kPeerLost, 2, "after the goodbye of rank 2, rank " + std::to_string(rank));
      EXPECT(outcome.failure.detail == AbortDetail::kLeft);
    }
  }
}

// A rank leaves the moment that it is done, over and over: no false error on those still busy.
CHECK_CASE(failure_exit_right_after_an_operation) {
  Random random(25);
  const int rounds = kSanitized ? 60 : 1000;
  for (int round = 0; round < rounds; ++round) {
    GroupConfig config;
    config.world_size = 3;
    config.placement = round % 2 == 0 ? PlacementKind::kBounce : PlacementKind::kPush;
    config.failure_tells_peers = false;
    Workload workload(3);
    add(workload, random, kKinds[static_cast<size_t>(round) % std::size(kKinds)], 3, 100);
    ThreadRanks ranks(config);
    const uint64_t seq = ranks.next_seq();
    const std::vector<Outcome> outcomes = ranks.run(workload.calls(), [&] {
      wait_completed(ranks, 0, seq);
      tell_exit(ranks, 3, 0, AbortDetail::kLeft);
    });
    for (const Outcome& outcome : outcomes) EXPECT(outcome.failure.code == ErrorCode::kOk);
    EXPECT_EQ(workload.problem(), std::string());
  }
}

// A peer publishes its part, and dies, leaves or aborts, just between a wait's look at its flag and the one at aborts
// and exits: the wait looks at its flag once more, and goes on with what is there.
CHECK_CASE(failure_what_was_published_before_counts) {
  enum class End { kDies, kLeaves, kAborts };
  for (const End end : {End::kDies, End::kLeaves, End::kAborts}) {
    for (const bool publishes : {true, false}) {
      ThreadRanks ranks(group(2, PlacementKind::kBounce));
      LaneBarrier one_lane(1);
      HostOp ops[2];
      for (HostOp& op : ops) {
        op.seq = 1;
        op.hash = 7;
        op.timeout_ns = 5'000'000'000;
      }
      LaneScratch scratch(ranks.context(0));
      HostExec waiting(ranks.context(0), ops[0], one_lane, 0, 0, scratch);
      HostExec leaving(ranks.context(1), ops[1], one_lane, 0, 0, scratch);
      bool is_first_turn = true;
      test_turn_of_wait = [&] {
        if (!is_first_turn) return;
        is_first_turn = false;
        if (publishes) leaving.signal_all(Flow::kDirect, 0);
        AbortReason reason;
        reason.code = ErrorCode::kAborted;
        reason.culprit = reason.reporter = 1;
        if (end == End::kAborts) {
          broadcast_abort(ranks.context(1), reason);
        } else {
          tell_exit(ranks, 2, 1, end == End::kDies ? AbortDetail::kDied : AbortDetail::kLeft);
        }
      };
      const bool has_come = waiting.wait_all(Flow::kDirect, 0);
      test_turn_of_wait = nullptr;
      EXPECT(!is_first_turn);  // the wait was one
      EXPECT_EQ(has_come, publishes);
      const ErrorCode expected = end == End::kAborts ? ErrorCode::kAborted : ErrorCode::kPeerLost;
      EXPECT(ops[0].failure.code == (publishes ? ErrorCode::kOk : expected));
    }
  }
}

// A rank is done and gone while another one has not even begun: who waits for the late one waits on.
CHECK_CASE(failure_exit_before_a_late_rank) {
  Random random(31);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const Kind kind : {Kind::kReduceToFirst, Kind::kGatherToFirst}) {
      GroupConfig config = group(3, placement);
      config.failure_tells_peers = false;
      Workload workload(3);
      add(workload, random, kind, 3, 10);
      Calls calls = workload.calls();
      calls[0][1].delay_ms = 30;
      ThreadRanks ranks(config);
      const uint64_t seq = ranks.next_seq();
      const std::vector<Outcome> outcomes = ranks.run(calls, [&] {
        wait_completed(ranks, 2, seq);
        tell_exit(ranks, 3, 2, AbortDetail::kDied);
      });
      for (int rank = 0; rank < 3; ++rank) {
        EXPECT_MSG(outcomes[static_cast<size_t>(rank)].failure.code == ErrorCode::kOk, name_of(kind, config, rank));
      }
      EXPECT_EQ(workload.problem(), std::string());
    }
  }
}

CHECK_CASE(failure_timeout_names_whom_we_waited_for) {
  Random random(26);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const Kind kind : kKinds) {
      GroupConfig config = group(3, placement);
      config.failure_tells_peers = false;
      config.timeout_ns = kShortTimeoutNs;
      Workload workload(3);
      add(workload, random, kind, 3);
      Calls calls = workload.calls();
      make_absent(calls, 0, 2);
      ThreadRanks ranks(config);
      const std::vector<Outcome> outcomes = ranks.run(calls);
      for (int rank = 0; rank < 2; ++rank) {
        const Outcome& outcome = outcomes[static_cast<size_t>(rank)];
        // In a ring, rank 1 waits for rank 0, which waits for the absent one; and so for credits of the root, rank 0.
        const bool by_way_of_0 = kind == Kind::kRing || kind == Kind::kReduceToFirst || kind == Kind::kGatherToFirst;
        expect_failure(outcome, ErrorCode::kTimeout, by_way_of_0 && rank == 1 ? 0 : 2, name_of(kind, config, rank));
        EXPECT(outcome.failure.waited_ns >= config.timeout_ns);
      }
    }
    // The root runs out of credits: its reader is missing.
    GroupConfig config = group(2, placement);
    config.timeout_ns = kShortTimeoutNs;
    Workload workload(2);
    workload.add_broadcast(random, DType::kF32, 2000, 0);
    Calls calls = workload.calls();
    make_absent(calls, 0, 1);
    expect_failure(ThreadRanks(config).run(calls)[0], ErrorCode::kTimeout, 1, "a root without credits");
  }
}

// One rank's fingerprint differs: everyone raises by itself, long before the deadline.
CHECK_CASE(failure_mismatch_same_algorithm) {
  Random random(27);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const Kind kind : kMutualKinds) {
      for (const int odd : {0, 2}) {
        GroupConfig config = group(4, placement);
        config.failure_tells_peers = false;
        Workload workload(4);
        add(workload, random, Kind::kBarrier, 4);
        add(workload, random, kind, 4);
        Calls calls = workload.calls();
        calls[1][static_cast<size_t>(odd)].salt = 1;
        ThreadRanks ranks(config);
        const std::vector<Outcome> outcomes = ranks.run(calls);
        for (int rank = 0; rank < 4; ++rank) {
          const Outcome& outcome = outcomes[static_cast<size_t>(rank)];
          EXPECT_EQ(outcome.num_completed, size_t{1});
          expect_failure(outcome, ErrorCode::kMismatch, rank == odd ? outcome.failure.culprit : odd,
                         name_of(kind, config, rank));
          EXPECT(outcome.failure.culprit != rank);
        }
      }
    }
  }
}

// Ranks that run different text wait on different flags: only the headers tell.
CHECK_CASE(failure_mismatch_other_operation) {
  Random random(28);
  for (const auto placement : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (int variant = 0; variant < 9; ++variant) {
      GroupConfig config = group(3, placement);
      config.failure_tells_peers = false;
      Workload common(3);
      Workload other(3);
      constexpr Kind kCommon[] = {Kind::kTwoShot, Kind::kTwoShot,   Kind::kTwoShot, Kind::kBroadcast, Kind::kTwoShot,
                                  Kind::kOneShot, Kind::kAllGather, Kind::kTree,    Kind::kAllToAll};
      add(common, random, kCommon[variant], 3);
      switch (variant) {
        case 0:
          add(other, random, Kind::kRing, 3);
          break;
        case 1:
          add(other, random, Kind::kTwoShot, 3, 280);
          break;
        case 2:
          add(other, random, Kind::kBarrier, 3);
          break;
        case 3:
          other.add_broadcast(random, DType::kF32, 300, 1);
          break;  // another root
        case 4:
          other.add_all_reduce(random, {DType::kI32, DType::kI32, ReduceOp::kSum, Algo::kTwoShot}, 300);
          break;
        case 5:
          add(other, random, Kind::kPackets, 3);
          break;
        case 6:
          add(other, random, Kind::kReduceScatter, 3);  // in the same slots
          break;
        case 7:
          add(other, random, Kind::kRing, 3);  // in the same slots
          break;
        case 8:
          add(other, random, Kind::kGatherToFirst, 3);  // on the same flags, but to one rank only
      }
      Calls calls = common.calls();
      calls[0][1] = other.calls()[0][1];
      const std::vector<Outcome> outcomes = ThreadRanks(config).run(calls);
      for (int rank = 0; rank < 3; ++rank) {
        const Outcome& outcome = outcomes[static_cast<size_t>(rank)];
        expect_failure(outcome, ErrorCode::kMismatch, rank == 1 ? outcome.failure.culprit : 1,
                       "variant " + std::to_string(variant) + " rank " + std::to_string(rank));
      }
    }
  }
}

// A broadcast's root hears from nobody: it learns of the disagreement in its next operation, at the latest.
CHECK_CASE(failure_mismatch_seen_in_next_operation) {
  Random random(29);
  GroupConfig config = group(3, PlacementKind::kBounce);
  Workload workload(3);
  workload.add_broadcast(random, DType::kF32, 60, 0);
  add(workload, random, Kind::kTwoShot, 3);
  Calls calls = workload.calls();
  calls[0][2].salt = 1;
  for (const Outcome& outcome : ThreadRanks(config).run(calls)) EXPECT(outcome.failure.code == ErrorCode::kMismatch);
}

// One rank did not call a broadcast: its root is an operation or more ahead when both wait, on different flags.
CHECK_CASE(failure_mismatch_seen_by_a_rank_left_behind) {
  Random random(31);
  for (const int num_broadcasts : {1, 2, 6}) {
    GroupConfig config = group(2, PlacementKind::kBounce);
    config.depth = 4;
    Workload ahead(2);
    Workload behind(2);
    for (int i = 0; i < num_broadcasts; ++i) ahead.add_broadcast(random, DType::kF32, 20, 0);
    add(ahead, random, Kind::kRing, 2);
    for (int i = 0; i <= num_broadcasts; ++i) add(behind, random, Kind::kTwoShot, 2);
    Calls calls = ahead.calls();
    const Calls others = behind.calls();
    for (size_t i = 0; i < calls.size(); ++i) calls[i][1] = others[i][1];
    const std::vector<Outcome> outcomes = ThreadRanks(config).run(calls);
    expect_failure(outcomes[1], ErrorCode::kMismatch, 0, "left behind " + std::to_string(num_broadcasts));
    EXPECT(outcomes[0].failure.code == ErrorCode::kMismatch);
  }
}

CHECK_CASE(failure_interrupt_and_stall_warning) {
  Random random(30);
  static std::atomic<int> num_warnings;
  static std::atomic<bool> is_interrupted;
  GroupConfig config;
  config.warn_ns = 60'000'000;
  config.interrupted = [](void*) { return is_interrupted.load(); };
  config.stalled = [](void*, int peer, int64_t waited_ns) {
    if (peer == 1 && waited_ns >= 60'000'000) ++num_warnings;
  };
  for (const Kind kind : {Kind::kTwoShot, Kind::kPackets, Kind::kTree, Kind::kReduceToFirst, Kind::kScatter}) {
    num_warnings = 0;
    is_interrupted = false;
    Workload workload(2);
    add(workload, random, kind, 2);
    Calls calls = workload.calls();
    make_absent(calls, 0, 1);
    const std::vector<Outcome> outcomes = ThreadRanks(config).run(calls, [] {
      for (int i = 0; i < 2000 && num_warnings == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      std::this_thread::sleep_for(std::chrono::milliseconds(150));  // it does not warn twice
      is_interrupted = true;
    });
    expect_failure(outcomes[0], ErrorCode::kInterrupted, 0, name_of(kind, config, 0));
    EXPECT_EQ(num_warnings.load(), 1);
  }
}

}  // namespace dcomm::checks
