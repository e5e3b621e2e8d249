// The CUDA kernels of the other collectives on emulated blocks, bit for bit against the host executor.
#include "cuda_emulated_group.h"

namespace dcomm::checks::cuda {
namespace {

CollectiveCall call_of(Collective collective, DType dtype, size_t count, int root = 0) {
  CollectiveCall call;
  call.collective = collective;
  call.dtype = call.wire = dtype;
  call.count = count;
  call.root = root;
  return call;
}

/// One group for all: its counters go on, and roots change.
void compare_all(Collective collective, int world_size) {
  EmulatedGroup group(world_size, 2, 256);
  const DType dtypes[] = {DType::kF32, DType::kBF16, DType::kF16};
  const size_t counts[] = {0, 1, 7, 8, 333, 1000, 130, 64};
  size_t turn = static_cast<size_t>(world_size);
  for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg}) {
    if (op == ReduceOp::kAvg && !reduces(collective)) continue;
    for (int i = 0; i < 12; ++i, ++turn) {
      CollectiveCall call =
          call_of(collective, dtypes[turn % 3], counts[(turn * 3) % 8], static_cast<int>(turn) % world_size);
      call.op = op;
      compare(group, call, kLayouts[turn % 4]);
    }
  }
}

CHECK_CASE(cuda_reduce_scatter_matches_host) {
  for (const int n : {1, 2, 3, 4, 5, 8}) compare_all(Collective::kReduceScatter, n);
}

CHECK_CASE(cuda_reduce_matches_host) {
  for (const int n : {1, 2, 3, 4, 5}) compare_all(Collective::kReduce, n);
}

CHECK_CASE(cuda_broadcast_matches_host) {
  for (const int n : {1, 2, 3, 4, 5}) compare_all(Collective::kBroadcast, n);
}

CHECK_CASE(cuda_all_gather_matches_host) {
  for (const int n : {1, 2, 3, 4, 5}) compare_all(Collective::kAllGather, n);
}

CHECK_CASE(cuda_gather_matches_host) {
  for (const int n : {1, 2, 3, 4, 5}) compare_all(Collective::kGather, n);
}

CHECK_CASE(cuda_scatter_matches_host) {
  for (const int n : {1, 2, 3, 4, 5}) compare_all(Collective::kScatter, n);
}

CHECK_CASE(cuda_all_to_all_matches_host) {
  for (const int n : {1, 2, 3, 4, 5}) compare_all(Collective::kAllToAll, n);
}

/// The same windows, counters and credits for all, with roots that change.
CHECK_CASE(cuda_collectives_alternate) {
  EmulatedGroup group(3, 2, 256);
  const Collective collectives[] = {Collective::kScatter,       Collective::kAllGather, Collective::kReduce,
                                    Collective::kBroadcast,     Collective::kAllToAll,  Collective::kAllReduce,
                                    Collective::kReduceScatter, Collective::kGather};
  for (size_t i = 0; i < 24; ++i) {
    CollectiveCall call = call_of(collectives[i % 8], DType::kF32, 50 * (i % 5), static_cast<int>(i % 3));
    call.algo = i % 16 < 8 ? Algo::kOneShot : Algo::kTwoShot;
    compare(group, call, kLayouts[i % 4]);
  }
}

/// Nobody leaves before the last one has come.
CHECK_CASE(cuda_barrier_waits_for_all) {
  EmulatedGroup group(4, 3, 256);
  const Arrays arrays(call_of(Collective::kBarrier, DType::kF32, 0), 4, kLayouts[0]);
  const Launch launch = make_launch(group, call_of(Collective::kBarrier, DType::kF32, 0), arrays.arrays);
  EXPECT_EQ(launch.num_channels, 1);
  for (uint64_t turn = 1; turn <= 5; ++turn) {
    run_grid(launch);
    EXPECT_EQ(group.error, uint64_t{0});
    for (int r = 0; r < 4; ++r) EXPECT_EQ(group.counter(r, 0, Counter::kBarrier), turn);
  }
  Launch alone = launch;
  alone.job.timeout_ns = 100'000'000;
  run_grid(alone, 1);
  EXPECT_EQ(static_cast<int>(group.error >> 56), static_cast<int>(ErrorCode::kTimeout));
  EXPECT_EQ(static_cast<int>((group.error >> 16) & 0xffffu), 1);
}

/// Every alignment of both ends, and no byte beside them.
CHECK_CASE(cuda_bytes_move_whatever_the_alignment) {
  EmulatedGroup group(1, 1, 256);
  Launch launch = make_launch(group, call_of(Collective::kBroadcast, DType::kF32, 0), {CudaArrays{}});
  launch.body = [](CudaBlockExec& exec, const CudaJob& job, const CudaArrays& arrays) {
    move_bytes<16>(exec, static_cast<std::byte*>(arrays.out), static_cast<const std::byte*>(arrays.in), job.plan.count);
  };
  for (size_t from_shift = 0; from_shift < 16; ++from_shift) {
    for (size_t to_shift = 0; to_shift < 16; to_shift += 1 + from_shift % 3) {
      const size_t num_bytes = (from_shift * 37 + to_shift * 11) % 300;
      const Array from(num_bytes, from_shift);
      const Array to(num_bytes, to_shift);
      for (size_t i = 0; i < num_bytes; ++i) from.memory[i] = static_cast<std::byte>(i * 7 + 1);
      launch.job.arrays[0] = {from.memory, to.memory};
      launch.job.plan.count = num_bytes;
      run_grid(launch);
      EXPECT(std::memcmp(to.memory, from.memory, num_bytes) == 0);
      EXPECT(to.guards_intact());
    }
  }
}

/// Messages of several sizes between changing pairs; nobody else's result is touched.
CHECK_CASE(cuda_send_arrives) {
  EmulatedGroup group(3, 2, 256);
  const size_t counts[] = {0, 1, 15, 16, 333, 4096, 1500};
  for (size_t turn = 0; turn < 21; ++turn) {
    const size_t count = counts[turn % 7];
    const int source = static_cast<int>(turn % 3);
    const int target = static_cast<int>((turn + 1 + turn % 2) % 3);
    std::vector<std::vector<unsigned char>> in(3), out(3, std::vector<unsigned char>(count + 1, 0xee));
    std::vector<CudaArrays> arrays;
    for (size_t rank = 0; rank < 3; ++rank) {
      for (size_t i = 0; i <= count; ++i) in[rank].push_back(static_cast<unsigned char>(i * 7 + rank + turn));
      arrays.push_back({in[rank].data(), out[rank].data()});
    }
    Launch launch = make_launch(group, call_of(Collective::kSend, DType::kU8, count, source), arrays);
    launch.job.peer = target;
    run_grid(launch);
    EXPECT_EQ(group.error, uint64_t{0});
    for (size_t rank = 0; rank < 3; ++rank) {
      std::vector<unsigned char> expected(count + 1, 0xee);
      if (static_cast<int>(rank) == target) {
        std::copy_n(in[static_cast<size_t>(source)].begin(), count, expected.begin());
      }
      EXPECT(out[rank] == expected);
    }
  }
}

}  // namespace
}  // namespace dcomm::checks::cuda
