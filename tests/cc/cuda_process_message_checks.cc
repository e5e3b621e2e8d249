// Messages between ranks of different processes: each side is a grid of its own, and the two meet in the pair's slots.
#include <string>

#include "cuda_process_ranks.h"

namespace dcomm::checks::cuda {
namespace {

constexpr size_t kSlotBytes = 256;
constexpr int kNumChannels = 2;
/// A sender that nobody takes anything of comes so far: the envelope and one slot on each channel.
constexpr size_t kAheadBytes = kSlotBytes * kNumChannels;
constexpr uint64_t kShortNs = 100'000'000;

std::vector<std::byte> bytes_of(uint64_t seed, size_t count) {
  std::vector<std::byte> data(count);
  Numbers numbers(seed);
  for (std::byte& byte : data) byte = static_cast<std::byte>(numbers.next());
  return data;
}

void expect_codes(const ProcessRanks& ranks, const std::vector<ErrorCode>& codes, const std::string& what) {
  for (int rank = 0; rank < ranks.world_size(); ++rank) {
    EXPECT_MSG(ranks.error_code(rank) == static_cast<int>(codes[static_cast<size_t>(rank)]),
               what + ": rank " + std::to_string(rank) + " has " + std::to_string(ranks.error_code(rank)));
  }
}

CollectiveCall barrier_call() {
  CollectiveCall call;
  call.collective = Collective::kBarrier;
  return call;
}

/// Of all lengths around slots, between all pairs, each rank at its own pace, with collectives in between.
CHECK_CASE(cuda_process_messages_of_every_length) {
  const size_t counts[] = {0, 1, 15, 16, 255, 256, 257, 512, 513, 700, 1024, 5000};
  for (const int n : {2, 3}) {
    ProcessRanks ranks(n, kNumChannels, kSlotBytes);
    for_each_rank(n, [&](int rank) {
      Numbers random(static_cast<uint64_t>(rank));
      uint64_t number = 0;
      for (const size_t count : counts) {
        for (int src = 0; src < n; ++src) {
          for (int dst = 0; dst < n; ++dst, ++number) {
            if (src == dst || (rank != src && rank != dst)) continue;
            sleep_a_little(random);
            const std::vector<std::byte> sent = bytes_of(number, count);
            std::vector<std::byte> data = rank == src ? sent : std::vector<std::byte>(count);
            ranks.launch_message(rank, src, dst, data, static_cast<int>(number));
            EXPECT_MSG(data == sent, std::to_string(count) + " bytes from " + std::to_string(src));
          }
        }
        CollectiveCall sum = all_reduce_call(Algo::kTwoShot, kPairs[0], ReduceOp::kSum, 100);
        std::vector<float> x(100, 1.0f);
        ranks.launch(rank, sum, {x.data(), x.data()}, 7 + count);
        EXPECT_EQ(x[99], static_cast<float>(n));
      }
    });
    for (int rank = 0; rank < n; ++rank) EXPECT_EQ(ranks.error(rank), uint64_t{0});
  }
}

/// Many messages of a pair: a sender that runs ahead waits for slots, and none is overtaken.
CHECK_CASE(cuda_process_messages_keep_their_order) {
  ProcessRanks ranks(2, kNumChannels, kSlotBytes);
  for_each_rank(2, [&](int rank) {
    Numbers random(static_cast<uint64_t>(rank) + 5);
    for (uint64_t i = 0; i < 40; ++i) {
      if (rank == 1) sleep_a_little(random);
      const std::vector<std::byte> sent = bytes_of(i, i * 37 % 900);
      std::vector<std::byte> data = rank == 0 ? sent : std::vector<std::byte>(sent.size());
      ranks.launch_message(rank, 0, 1, data);
      EXPECT(data == sent);
    }
  });
  expect_codes(ranks, {ErrorCode::kOk, ErrorCode::kOk}, "order");
}

/// A message takes no part in the history of collectives: ranks that exchange none agree with those that do.
CHECK_CASE(cuda_process_messages_are_no_collectives) {
  ProcessRanks ranks(3, kNumChannels, kSlotBytes);
  for_each_rank(3, [&](int rank) {
    for (uint64_t turn = 0; turn < 6; ++turn) {
      std::vector<std::byte> data(100 + turn);
      if (rank < 2 && turn % 2 == 0) ranks.launch_message(rank, 0, 1, data);
      ranks.launch(rank, barrier_call(), {}, 3 + turn);
    }
  });
  expect_codes(ranks, {ErrorCode::kOk, ErrorCode::kOk, ErrorCode::kOk}, "barriers");
}

/// What fits the slots is sent without a recv, so two ranks may both send it first; what does not ends by its deadline.
CHECK_CASE(cuda_process_messages_that_both_send_first) {
  for (const bool fits : {true, false}) {
    ProcessRanks ranks(2, kNumChannels, kSlotBytes);
    const size_t count = fits ? kAheadBytes : kAheadBytes + 1;
    for_each_rank(2, [&](int rank) {
      std::vector<std::byte> sent = bytes_of(static_cast<uint64_t>(rank), count), got(count);
      ranks.launch_message(rank, rank, 1 - rank, sent, 0, DType::kU8, fits ? kTimeoutNs : kShortNs);
      if (ranks.error(rank) != 0) return;
      ranks.launch_message(rank, 1 - rank, rank, got);
      EXPECT(got == bytes_of(static_cast<uint64_t>(1 - rank), count));
    });
    const ErrorCode code = fits ? ErrorCode::kOk : ErrorCode::kTimeout;
    expect_codes(ranks, {code, code}, "both send first");
    if (!fits) EXPECT_EQ((ranks.error(0) >> 48) & 0xff, static_cast<uint64_t>(Flow::kMessageCredit));
  }
}

/// Rank 0 sends `count` elements of `dtype` with `tag` where rank 1 wants 240 of float32 with tag 5.
void expect_refused(size_t count, DType dtype, int tag) {
  ProcessRanks ranks(3, kNumChannels, kSlotBytes);
  for_each_rank(3, [&](int rank) {
    std::vector<std::byte> data(rank == 0 ? count * dtype_bytes(dtype) : 960);
    if (rank == 0) ranks.launch_message(0, 0, 1, data, tag, dtype, 20'000'000'000);
    if (rank == 1) ranks.launch_message(1, 0, 1, data, 5, DType::kF32, 20'000'000'000);
    if (ranks.error(rank) == 0) ranks.launch(rank, barrier_call(), {}, 9, 20'000'000'000);
  });
  const std::string what = std::to_string(count) + " x " + dtype_name(dtype) + ", tag " + std::to_string(tag);
  expect_codes(ranks, {ErrorCode::kMismatch, ErrorCode::kMismatch, ErrorCode::kMismatch}, what);
  for (int rank = 0; rank < 3; ++rank) {
    const uint64_t failure = ranks.error(rank);
    EXPECT_EQ((failure >> 48) & 0xff, static_cast<uint64_t>(Flow::kMessage));
    EXPECT_EQ((failure >> 32) & 0xffff, uint64_t{1});  // who received
    EXPECT_EQ((failure >> 16) & 0xffff, uint64_t{0});  // who sent
  }
}

CHECK_CASE(cuda_process_messages_differ) {
  expect_refused(239, DType::kF32, 5);
  expect_refused(0, DType::kF32, 5);
  expect_refused(5000, DType::kF32, 5);
  expect_refused(240, DType::kI32, 5);
  expect_refused(480, DType::kBF16, 5);
  expect_refused(240, DType::kF32, 4);
}

CHECK_CASE(cuda_process_messages_without_the_other_side) {
  {
    ProcessRanks ranks(3, kNumChannels, kSlotBytes);
    std::vector<std::byte> data(10);
    ranks.launch_message(1, 0, 1, data, 0, DType::kU8, kShortNs);
    EXPECT_EQ(ranks.error(1) >> 48,
              static_cast<uint64_t>(ErrorCode::kTimeout) << 8 | static_cast<uint64_t>(Flow::kMessage));
  }
  ProcessRanks ranks(3, kNumChannels, kSlotBytes);  // the host of rank 1 stops it, as when rank 0 has died
  std::thread host([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    __atomic_store_n(&ranks.members[1]->stop, 1u, __ATOMIC_RELEASE);
  });
  std::vector<std::byte> data(10);
  ranks.launch_message(1, 0, 1, data);
  host.join();
  EXPECT_EQ(ranks.error_code(1), static_cast<int>(ErrorCode::kAborted));
}

/// After a failure nothing more is sent: a sender need not wait, but learns of it, and its receiver gets no message.
CHECK_CASE(cuda_process_messages_end_with_the_group) {
  ProcessRanks ranks(2, kNumChannels, kSlotBytes);
  std::vector<std::byte> data(10);
  ranks.launch_message(1, 0, 1, data, 0, DType::kU8, kShortNs);
  ranks.launch_message(0, 0, 1, data);
  EXPECT_EQ(ranks.error(0), ranks.error(1));
  EXPECT_EQ(ranks.error_code(0), static_cast<int>(ErrorCode::kTimeout));
  const size_t line = cuda_window_layout(2, kNumChannels, kSlotBytes).flag_offset(0, Flow::kMessage, 0);
  EXPECT_EQ(reinterpret_cast<const Flag*>(ranks.shared.windows[1] + line)->value, uint64_t{0});
}

}  // namespace
}  // namespace dcomm::checks::cuda
