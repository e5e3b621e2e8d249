// Ranks of different processes: their kernels meet in the windows alone, and notice there that calls differ.
#include <optional>

#include "cuda_process_ranks.h"

namespace dcomm::checks::cuda {
namespace {

CollectiveCall call_of(Collective collective, size_t count, int root = 0, Algo algo = Algo::kAuto,
                       DType dtype = DType::kF32) {
  CollectiveCall call;
  call.collective = collective;
  call.algo = algo;
  call.dtype = call.wire = dtype;
  call.count = count;
  call.root = root;
  return call;
}

constexpr Collective kCollectives[] = {Collective::kAllReduce, Collective::kBroadcast,     Collective::kAllGather,
                                       Collective::kReduce,    Collective::kReduceScatter, Collective::kScatter,
                                       Collective::kAllToAll,  Collective::kGather,        Collective::kBarrier};
constexpr Algo kAlgos[] = {Algo::kRing, Algo::kTwoShot, Algo::kTree, Algo::kOneShot};

CHECK_CASE(cuda_processes_repeat_each_collective) {
  for (const int n : {2, 3, 4, 5}) {
    for (const Collective collective : kCollectives) {
      ProcessRanks ranks(n, 2, 256);
      std::vector<CollectiveCall> calls;
      for (size_t i = 0; i < 8; ++i) {
        const size_t count = collective == Collective::kBarrier ? 0 : (i * 211) % 600;
        calls.push_back(call_of(collective, count, static_cast<int>(i / 2) % n, kAlgos[i % 4],
                                i % 3 == 2 ? DType::kBF16 : DType::kF32));
      }
      compare_sequence(ranks, calls, static_cast<uint64_t>(n));
    }
  }
}

CHECK_CASE(cuda_processes_mix_collectives) {
  for (const int n : {2, 3, 4, 5}) {
    ProcessRanks ranks(n, 2, 256);
    for (uint64_t round = 0; round < 3; ++round) {
      std::vector<CollectiveCall> calls;
      for (size_t i = 0; i < 18; ++i) {
        const Collective collective = kCollectives[(i * 5 + round) % std::size(kCollectives)];
        calls.push_back(call_of(collective, collective == Collective::kBarrier ? 0 : 37 * (i % 7),
                                static_cast<int>(i + round) % n, kAlgos[(i + round) % 4]));
      }
      compare_sequence(ranks, calls, round * 10 + static_cast<uint64_t>(n));
    }
  }
}

/// A root may be many broadcasts ahead of a rank that has not begun: what that rank's header says is old, not wrong.
CHECK_CASE(cuda_processes_may_run_ahead) {
  const int n = 3;
  ProcessRanks ranks(n, 1, 256);
  std::vector<CollectiveCall> calls;
  for (int i = 0; i < 40; ++i) calls.push_back(call_of(Collective::kBroadcast, 20, i % 2 == 0 ? 0 : 1));
  compare_sequence(ranks, calls, 1);
}

/// After `before` equal calls rank `odd` makes another one than the rest; then all go on as if nothing were wrong, with
/// `after`, if any. Every rank must have noticed.
void expect_mismatch(int n, const std::vector<CollectiveCall>& before, const CollectiveCall& usual,
                     const CollectiveCall& other, int odd, const std::optional<CollectiveCall>& after) {
  ProcessRanks ranks(n, 2, 256);
  const auto run = [&](int rank, const CollectiveCall& call, uint64_t fingerprint) {
    const Arrays arrays(call, n, kLayouts[0]);
    ranks.launch(rank, call, arrays.arrays[static_cast<size_t>(rank)], fingerprint, 20'000'000'000);
  };
  const auto start = std::chrono::steady_clock::now();
  for_each_rank(n, [&](int rank) {
    for (const CollectiveCall& call : before) run(rank, call, 5);
    if (rank == odd) {
      run(rank, other, 6);
    } else {
      run(rank, usual, 7);
    }
    if (ranks.error(rank) == 0 && after) run(rank, *after, 8);
  });
  const std::string what = std::string(collective_name(usual.collective)) + " of " + std::to_string(usual.count) +
                           " and " + collective_name(other.collective) + " of " + std::to_string(other.count) +
                           " on rank " + std::to_string(odd) + " of " + std::to_string(n);
  for (int rank = 0; rank < n; ++rank) {
    EXPECT_MSG(ranks.error_code(rank) == static_cast<int>(ErrorCode::kMismatch),
               what + ": rank " + std::to_string(rank) + " has " + std::to_string(ranks.error_code(rank)));
    const int reporter = static_cast<int>((ranks.error(rank) >> 32) & 0xffffu);
    const int peer = static_cast<int>((ranks.error(rank) >> 16) & 0xffffu);
    EXPECT_MSG(reporter == odd || peer == odd,
               what + ": names ranks " + std::to_string(reporter) + ", " + std::to_string(peer));
  }
  EXPECT_MSG(std::chrono::steady_clock::now() - start < std::chrono::seconds(10), what + ": waited for the deadline");
}

CHECK_CASE(cuda_processes_notice_another_call) {
  const CollectiveCall usual[] = {
      call_of(Collective::kAllReduce, 300, 0, Algo::kTwoShot),
      call_of(Collective::kAllReduce, 300, 0, Algo::kRing),
      call_of(Collective::kAllReduce, 100, 0, Algo::kOneShot),
      call_of(Collective::kAllGather, 200),
      call_of(Collective::kReduceScatter, 200),
      call_of(Collective::kAllToAll, 200),
      call_of(Collective::kBarrier, 0),
  };
  const CollectiveCall after = call_of(Collective::kBarrier, 0);
  const std::vector<CollectiveCall> before(3, call_of(Collective::kAllReduce, 50, 0, Algo::kTwoShot));
  int turn = 0;
  for (const int n : {2, 3, 4}) {
    for (const CollectiveCall& mine : usual) {
      CollectiveCall more = mine;
      more.count += 900;
      const CollectiveCall others[] = {more, mine, call_of(Collective::kBarrier, 0),
                                       call_of(Collective::kAllGather, 64), call_of(Collective::kBroadcast, 64, 1)};
      const CollectiveCall& other = others[static_cast<size_t>(turn) % std::size(others)];
      expect_mismatch(n, before, mine, other, turn % n, after);
      ++turn;
    }
  }
}

/// Where a rank can finish without hearing from all: in its next operation at the latest.
CHECK_CASE(cuda_processes_notice_later) {
  const std::vector<CollectiveCall> before(2, call_of(Collective::kBarrier, 0));
  const CollectiveCall after = call_of(Collective::kAllReduce, 200, 0, Algo::kTwoShot);
  for (const int n : {2, 3, 4}) {
    for (int odd = 0; odd < n; ++odd) {
      for (const Collective collective :
           {Collective::kBroadcast, Collective::kReduce, Collective::kGather, Collective::kScatter}) {
        const CollectiveCall usual = call_of(collective, 60, 0);
        expect_mismatch(n, before, usual, call_of(collective, 60, 1), odd, after);
        expect_mismatch(n, before, usual, call_of(collective, 10, 0), odd, after);
        expect_mismatch(n, before, usual, usual, odd, after);  // the same data, say another dtype
      }
    }
  }
}

/// A call that differs in what no kernel can tell from the data (the same count, another op) and is followed at once.
CHECK_CASE(cuda_processes_notice_in_packets) {
  const CollectiveCall call = call_of(Collective::kAllReduce, 40, 0, Algo::kOneShot);
  for (const int n : {2, 3, 5}) {
    for (int odd = 0; odd < n; ++odd) {
      expect_mismatch(n, {call, call}, call, call, odd, call);
      expect_mismatch(n, {call, call}, call, call, odd, std::nullopt);
    }
  }
}

/// Packets do not bring the word along: a rank that has all of them waits for it, and compares it in this operation.
CHECK_CASE(cuda_processes_wait_for_words_after_packets) {
  ProcessRanks ranks(2, 1, 256);
  const CollectiveCall call = call_of(Collective::kAllReduce, 12, 0, Algo::kOneShot);
  const Arrays arrays(call, 2, kLayouts[0]);
  const size_t line = cuda_window_layout(2, 1, 256).flag_offset(0, Flow::kPacket, 0);
  uint64_t* const word = reinterpret_cast<uint64_t*>(ranks.shared.windows[1] + line) + 1;
  std::thread sender([&] { ranks.launch(0, call, arrays.arrays[0], 5); });
  uint64_t held_back = 0;
  while (held_back == 0) held_back = __atomic_exchange_n(word, 0, __ATOMIC_ACQ_REL);
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    __atomic_store_n(word, held_back ^ (uint64_t{1} << 40), __ATOMIC_RELEASE);
  });
  ranks.launch(1, call, arrays.arrays[1], 5, 20'000'000'000);
  sender.join();
  late.join();
  EXPECT_EQ(ranks.error_code(1), static_cast<int>(ErrorCode::kMismatch));
}

/// The word belongs to one operation: that of another one is not compared.
CHECK_CASE(cuda_header_words_of_other_operations_are_not_compared) {
  const uint64_t a = 0x1234567812345678, b = 0x8765432187654321;
  EXPECT(!cuda_calls_differ(cuda_header_word(a, 5), cuda_header_word(a, 5)));
  EXPECT(cuda_calls_differ(cuda_header_word(a, 5), cuda_header_word(b, 5)));
  EXPECT(!cuda_calls_differ(cuda_header_word(a, 5), cuda_header_word(b, 4)));
  EXPECT(!cuda_calls_differ(cuda_header_word(a, 5), cuda_header_word(b, 5 + kCudaHeaderWords)));
  EXPECT(!cuda_calls_differ(cuda_header_word(a, 1), 0));
  EXPECT(!cuda_calls_differ(cuda_header_word(a, 0x10003), cuda_header_word(a, 3)));
  EXPECT(cuda_header_has(cuda_header_word(a, 5), 5) && !cuda_header_has(0, 5));
  EXPECT(!cuda_header_has(cuda_header_word(a, 5), 5 + kCudaHeaderWords));
  EXPECT(cuda_header_has(cuda_header_word(a, 5 + kCudaHeaderWords), 5));
  EXPECT(cuda_header_has(cuda_header_word(a, 0x10003), 0xfff3) &&
         !cuda_header_has(cuda_header_word(a, 0xfff3), 0x10003));
}

/// The same calls in another order: each is right, their history is not.
CHECK_CASE(cuda_processes_notice_another_order) {
  const int n = 2;
  ProcessRanks ranks(n, 1, 256);
  for_each_rank(n, [&](int rank) {
    const CollectiveCall call = call_of(Collective::kBroadcast, 10, 0);
    const Arrays arrays(call, n, kLayouts[0]);
    for (const uint64_t fingerprint : {rank == 0 ? 1u : 2u, rank == 0 ? 2u : 1u, 3u}) {
      if (ranks.error(rank) == 0) ranks.launch(rank, call, arrays.arrays[static_cast<size_t>(rank)], fingerprint);
    }
    const CollectiveCall barrier = call_of(Collective::kBarrier, 0);
    if (ranks.error(rank) == 0) ranks.launch(rank, barrier, {}, 4);
  });
  for (int rank = 0; rank < n; ++rank) EXPECT_EQ(ranks.error_code(rank), static_cast<int>(ErrorCode::kMismatch));
}

/// Rank 0 is through with two broadcasts, for which it need not wait, before rank 1 begins the first, which differs.
CHECK_CASE(cuda_processes_keep_words_of_several_operations) {
  ProcessRanks ranks(2, 1, 256);
  for (const uint64_t fingerprint : {1, 5}) ranks.launch(0, call_of(Collective::kBroadcast, 0), {}, fingerprint);
  EXPECT_EQ(ranks.error(0), uint64_t{0});
  ranks.launch(1, call_of(Collective::kBroadcast, 0), {}, 2);
  EXPECT_EQ(ranks.error_code(1), static_cast<int>(ErrorCode::kMismatch));
}

/// A word that has not arrived when the operation is over (a root waits for nobody's): that of the next one tells.
CHECK_CASE(cuda_processes_keep_their_history) {
  ProcessRanks ranks(2, 1, 256);
  const CollectiveCall call = call_of(Collective::kBroadcast, 0);
  ranks.launch(0, call, {}, 1);
  const size_t line = cuda_window_layout(2, 1, 256).flag_offset(0, Flow::kPacket, 0);
  reinterpret_cast<uint64_t*>(ranks.shared.windows[1] + line)[1] = 0;
  ranks.launch(1, call, {}, 2);
  EXPECT_EQ(ranks.error(1), uint64_t{0});
  for (const int rank : {0, 1}) ranks.launch(rank, call, {}, 5);
  EXPECT_EQ(ranks.error_code(1), static_cast<int>(ErrorCode::kMismatch));
}

/// A rank that has nothing to wait for learns all the same that others have given up, and why.
CHECK_CASE(cuda_processes_hear_of_failures_without_waiting) {
  ProcessRanks ranks(2, 1, 256);
  ranks.launch(1, call_of(Collective::kBarrier, 0), {}, 1, 50'000'000);
  ranks.launch(0, call_of(Collective::kBroadcast, 0), {}, 1);
  for (const int rank : {0, 1}) EXPECT_EQ(ranks.error_code(rank), static_cast<int>(ErrorCode::kTimeout));
}

CHECK_CASE(cuda_processes_missing_rank_times_out) {
  for (const Algo algo : kAlgos) {
    const int n = 3;
    ProcessRanks ranks(n, 2, 256);
    const CollectiveCall call = call_of(Collective::kAllReduce, 300, 0, algo);
    const Arrays arrays(call, n, kLayouts[0]);
    for_each_rank(n, [&](int rank) {
      if (rank == 1) return;
      ranks.launch(rank, call, arrays.arrays[static_cast<size_t>(rank)], 1, 100'000'000);
    });
    for (const int rank : {0, 2}) EXPECT_EQ(ranks.error_code(rank), static_cast<int>(ErrorCode::kTimeout));
    // Late: it finds that the others have given up, and why.
    ranks.launch(1, call, arrays.arrays[1], 1);
    EXPECT_EQ(ranks.error_code(1), static_cast<int>(ErrorCode::kTimeout));
    ProcessRanks next(n, 2, 256);
    compare_sequence(next, {call}, 3);
  }
}

/// One host stops its rank, as when a peer has died: all leave, each with the reason of the first.
CHECK_CASE(cuda_processes_stop_word_ends_all_grids) {
  const int n = 4;
  ProcessRanks ranks(n, 2, 256);
  const CollectiveCall call = call_of(Collective::kAllReduce, 300, 0, Algo::kTwoShot);
  const Arrays arrays(call, n, kLayouts[0]);
  for_each_rank(n, [&](int rank) {
    if (rank == 3) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      __atomic_store_n(&ranks.members[1]->stop, 1u, __ATOMIC_RELEASE);
    } else {
      ranks.launch(rank, call, arrays.arrays[static_cast<size_t>(rank)], 1);
    }
  });
  for (const int rank : {0, 1, 2}) {
    EXPECT_EQ(ranks.error_code(rank), static_cast<int>(ErrorCode::kAborted));
    EXPECT_EQ(static_cast<int>((ranks.error(rank) >> 32) & 0xffffu), 1);
  }
}

}  // namespace
}  // namespace dcomm::checks::cuda
