// Packets of the CUDA executor: the flag that travels with the data, its wrap, and the two buffers.
#include <chrono>
#include <thread>

#include "cuda_emulated_group.h"

namespace dcomm::checks::cuda {
namespace {

constexpr DType kF32Pair[2] = {DType::kF32, DType::kF32};

CollectiveCall small_call(size_t count) { return all_reduce_call(Algo::kOneShot, kF32Pair, ReduceOp::kSum, count); }

void start_at(EmulatedGroup& group, uint64_t seq) {
  for (int r = 0; r < group.world_size; ++r) {
    for (int channel = 0; channel < group.num_channels; ++channel) group.counter(r, channel, Counter::kPacket) = seq;
  }
}

/// Windows that were never written do not look like a message, at no number; messages that share a buffer differ.
CHECK_CASE(cuda_packet_flags) {
  for (const uint64_t start :
       {uint64_t{0}, (uint64_t{1} << 31) - 8, (uint64_t{1} << 32) - 8, (uint64_t{5} << 32) - 8}) {
    for (uint64_t seq = start; seq < start + 16; ++seq) {
      EXPECT(cuda_packet_flag(seq) != 0);
      EXPECT(cuda_packet_flag(seq) != cuda_packet_flag(seq + 2));
      EXPECT(cuda_packet_flag(seq) != cuda_packet_flag(seq + (uint64_t{1} << 31)));
    }
  }
}

/// Message numbers that pass 2^32; long messages come where packets were never written.
CHECK_CASE(cuda_packet_flags_wrap) {
  for (const int n : {2, 3, 5}) {
    EmulatedGroup group(n, 2, 256);
    start_at(group, (uint64_t{1} << 32) - 3);
    for (int turn = 0; turn < 6; ++turn) compare(group, small_call(turn < 2 || turn == 4 ? 10 : 150), kLayouts[0]);
    EXPECT_EQ(group.counter(0, 1, Counter::kPacket), (uint64_t{1} << 32) + 3);
  }
}

/// The packets of message seq, of the number where a plain low word would be zero, are waited for.
CHECK_CASE(cuda_zeroed_window_is_no_message) {
  for (const uint64_t seq : {uint64_t{0}, (uint64_t{1} << 32) - 2, (uint64_t{1} << 32) - 1, uint64_t{1} << 32}) {
    EmulatedGroup group(3, 1, 256);
    start_at(group, seq);
    const Arrays arrays(small_call(20), 3, kLayouts[0]);
    Launch launch = make_launch(group, small_call(20), arrays.arrays);
    launch.job.timeout_ns = 100'000'000;
    run_grid(launch, 1);
    EXPECT_EQ(static_cast<int>(group.error >> 56), static_cast<int>(ErrorCode::kTimeout));
    EXPECT_EQ(static_cast<int>((group.error >> 48) & 0xffu), static_cast<int>(Flow::kPacket));
    EXPECT_EQ(static_cast<int>((group.error >> 16) & 0xffffu), 1);
    EXPECT_EQ(group.counter(0, 0, Counter::kPacket), seq);
  }
}

/// Several messages in one operation, through both buffers, by lanes that get different shares of them.
CHECK_CASE(cuda_packets_in_many_messages) {
  for (const int n : {2, 3, 4}) {
    EmulatedGroup group(n, 1, 256);
    for (const size_t count : {size_t{1000}, size_t{97}, size_t{193}, size_t{0}, size_t{400}}) {
      const CollectiveCall call = small_call(count);
      const Arrays device(call, n, kLayouts[1]);
      const Arrays host(call, n, kLayouts[1]);
      run_host(n, call, host.arrays);
      const CollectiveCall tiny = small_call(16);  // finds the kernel that takes packets
      Launch launch = make_launch(group, tiny, device.arrays);
      launch.job.plan = ChunkPlan::make(count, 1, 96, 1);
      run_grid(launch);
      EXPECT_EQ(group.error, uint64_t{0});
      for (size_t r = 0; r < static_cast<size_t>(n); ++r) {
        EXPECT(std::memcmp(device.outs[r]->memory, host.outs[r]->memory, count * 4) == 0);
      }
    }
  }
}

CHECK_CASE(cuda_packets_for_small_messages_only) {
  const CudaShape shape{4, 2, 4096, 384};
  CudaRequest request{Collective::kAllReduce, Algo::kOneShot, DType::kF32, DType::kF16, 384};
  EXPECT(choose_cuda(request, shape).key.variant);
  request.count = 385;
  EXPECT(!choose_cuda(request, shape).key.variant);
  request.algo = Algo::kAuto;
  EXPECT_EQ(static_cast<int>(choose_cuda(request, shape).key.algo), static_cast<int>(Algo::kTwoShot));
  request.count = 384;
  EXPECT_EQ(static_cast<int>(choose_cuda(request, shape).key.algo), static_cast<int>(Algo::kOneShot));
  const CudaShape large{64, 8, 4096, 6144};
  request.count = 4097;  // 2 bytes each, to 64 ranks: beyond the limit for one step
  EXPECT_EQ(static_cast<int>(choose_cuda(request, large).key.algo), static_cast<int>(Algo::kTwoShot));
}

}  // namespace
}  // namespace dcomm::checks::cuda
