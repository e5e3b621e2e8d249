// The CUDA executor and all-reduce kernels on emulated blocks, bit for bit against the host executor.
#include <chrono>
#include <thread>

#include "cuda_emulated_group.h"

namespace dcomm::checks::cuda {
namespace {

void compare_all(Algo algo, int world_size, int num_channels) {
  EmulatedGroup group(world_size, num_channels, 256);  // one group for all: its counters go on
  const size_t counts[] = {0, 1, 7, 8, 333, 1000, 2049, 130};
  size_t turn = static_cast<size_t>(world_size);
  for (const auto& pair : kPairs) {
    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg}) {
      for (int i = 0; i < 3; ++i, ++turn) {
        compare(group, all_reduce_call(algo, pair, op, counts[(turn * 3) % 8]), kLayouts[turn % 4]);
      }
    }
  }
}

CHECK_CASE(cuda_two_shot_matches_host_unrolled) {
  for (const int n : {2, 4, 8}) compare_all(Algo::kTwoShot, n, 2);
}

CHECK_CASE(cuda_two_shot_matches_host_any) {
  for (const int n : {1, 3, 5, 7}) compare_all(Algo::kTwoShot, n, 2);
}

CHECK_CASE(cuda_ring_matches_host) {
  for (const int n : {2, 3, 4, 5}) compare_all(Algo::kRing, n, 2);
}

CHECK_CASE(cuda_tree_matches_host) {
  for (const int n : {1, 2, 3, 4, 5}) compare_all(Algo::kTree, n, 2);
}

/// Packets up to 768 bytes on two channels here, slots above.
CHECK_CASE(cuda_one_shot_matches_host) {
  for (const int n : {1, 2, 3, 4, 5, 8}) compare_all(Algo::kOneShot, n, 2);
}

CHECK_CASE(cuda_many_ranks) {
  for (const int n : {22, 33}) {
    EmulatedGroup group(n, 1, 256);
    for (const auto& pair : {kPairs[0], kPairs[1]}) {
      compare(group, all_reduce_call(Algo::kTwoShot, {pair[0], pair[1]}, ReduceOp::kAvg, 1500), Layout{false, 0});
      compare(group, all_reduce_call(Algo::kOneShot, {pair[0], pair[1]}, ReduceOp::kAvg, 90), Layout{false, 0});
    }
  }
}

CHECK_CASE(cuda_algorithms_alternate) {
  EmulatedGroup group(3, 2, 256);
  const Algo algos[] = {Algo::kRing, Algo::kTwoShot, Algo::kTree, Algo::kOneShot};
  for (size_t i = 0; i < 12; ++i) {
    const size_t count = i % 8 < 4 ? 700 : 70;
    compare(group, all_reduce_call(algos[i % 4], kPairs[i % 5], ReduceOp::kSum, count), Layout{false, 0});
  }
}

/// A rank that never comes: all others leave, the first to give up says whom it waited for.
CHECK_CASE(cuda_missing_rank_ends_the_grid) {
  for (const Algo algo : {Algo::kRing, Algo::kTwoShot, Algo::kTree, Algo::kOneShot}) {
    EmulatedGroup group(4, 2, 256);
    const CollectiveCall call = all_reduce_call(algo, kPairs[0], ReduceOp::kSum, 1000);
    const Arrays arrays(call, 4, Layout{false, 0});
    Launch launch = make_launch(group, call, arrays.arrays);
    launch.job.timeout_ns = 100'000'000;
    run_grid(launch, 2);
    EXPECT_EQ(static_cast<int>(group.error >> 56), static_cast<int>(ErrorCode::kTimeout));
    EXPECT(group.stop != 0);
    const int culprit = static_cast<int>((group.error >> 16) & 0xffffu);
    EXPECT(algo == Algo::kRing || algo == Algo::kTree || culprit == 2);
    for (const uint64_t counter : group.counters) EXPECT_EQ(counter, uint64_t{0});
  }
}

/// The host's stop word ends a grid that would otherwise wait for a minute.
CHECK_CASE(cuda_stop_word_ends_the_grid) {
  EmulatedGroup group(3, 1, 256);
  const CollectiveCall call = all_reduce_call(Algo::kTwoShot, kPairs[0], ReduceOp::kSum, 100);
  const Arrays arrays(call, 3, Layout{false, 0});
  const Launch launch = make_launch(group, call, arrays.arrays);
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    __atomic_store_n(&group.stop, 1u, __ATOMIC_RELEASE);
  });
  run_grid(launch, 0);
  stopper.join();
  EXPECT_EQ(static_cast<int>(group.error >> 56), static_cast<int>(ErrorCode::kAborted));
}

/// "auto" on a GPU, at the edges of its rows.
CHECK_CASE(cuda_tuning_rows) {
  const auto chosen = [](int world_size, size_t count, DType wire = DType::kF32, Algo asked = Algo::kAuto) {
    return choose_cuda_algo({Collective::kAllReduce, asked, DType::kF32, wire, count},
                            {world_size, 32, size_t{64} << 10, kCudaPacketDataBytes * 1024});
  };
  EXPECT(chosen(1, 1) == Algo::kTwoShot);
  EXPECT(chosen(1, 1, DType::kF32, Algo::kRing) == Algo::kTwoShot);
  EXPECT(chosen(8, 16384) == Algo::kOneShot);
  EXPECT(chosen(8, 16385) == Algo::kTwoShot);
  EXPECT(chosen(8, 32768, DType::kF16) == Algo::kOneShot);
  EXPECT(chosen(2, 65536) == Algo::kOneShot);
  EXPECT(chosen(128, size_t{1} << 20) == Algo::kTwoShot);
  EXPECT(chosen(8, 1, DType::kF32, Algo::kTree) == Algo::kTree);
  // Where one message of packets does not carry it all.
  const CudaShape small{2, 1, size_t{64} << 10, 768};
  EXPECT(choose_cuda_algo({Collective::kAllReduce, Algo::kAuto, DType::kF32, DType::kF32, 192}, small) ==
         Algo::kOneShot);
  EXPECT(choose_cuda_algo({Collective::kAllReduce, Algo::kAuto, DType::kF32, DType::kF32, 193}, small) ==
         Algo::kTwoShot);
  EXPECT_EQ(choose_cuda_channels(132, 4), 32);
  EXPECT_EQ(choose_cuda_channels(132, 8), 16);
  EXPECT_EQ(choose_cuda_channels(132, 8, 20), 16);
  EXPECT_EQ(choose_cuda_channels(132, 8, 4), 4);
  EXPECT_EQ(choose_cuda_channels(132, 200, 4), 1);
}

CHECK_CASE(cuda_plan_uses_all_channels) {
  // 64 KiB over 8 ranks and 16 channels: 512 bytes each, though a slot would hold more.
  const ChunkPlan plan = cuda_plan(16384, 8, 4, 65536 / 4, 16);
  EXPECT_EQ(plan.num_tiles(), uint64_t{1});
  EXPECT(plan.segment(0, 3, 0).count > 0);
  // Never more than a slot, and never packs cut in two.
  for (const size_t count : {size_t{1}, size_t{1000}, size_t{1} << 20, (size_t{1} << 24) + 3}) {
    const ChunkPlan any = cuda_plan(count, 3, 2, 4096 / 2, 7);
    EXPECT(any.segment_count * 2 <= 4096);
    EXPECT_EQ(any.segment_count % kChunkAlign, size_t{0});
  }
}

}  // namespace
}  // namespace dcomm::checks::cuda
