// All-reduces of arrays where they lie: bits, and the two meetings that keep ranks off each other's arrays.
#include <array>

#include "cuda_process_ranks.h"

namespace dcomm::checks::cuda {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
/// Some mutations end in a wait for ever.
constexpr uint64_t kHangNs = 10'000'000'000;

CollectiveCall direct_call(DType dtype, ReduceOp op, size_t count) {
  return all_reduce_call(Algo::kDirect, {dtype, dtype}, op, count);
}

void compare_direct(EmulatedGroup& group, const CollectiveCall& call, const Layout& layout, bool pulled) {
  const int n = group.world_size;
  const Arrays device(call, n, layout);
  const Arrays host(call, n, layout);
  CollectiveCall staged = call;
  staged.algo = Algo::kTwoShot;
  run_host(n, staged, host.arrays);
  run_grid(make_launch(group, call, device.arrays, pulled));
  const std::string what = std::string(pulled ? "pulled " : "direct ") + dtype_name(call.dtype) + ", " +
                           reduce_op_name(call.op) + " of " + std::to_string(call.count) + ", " + std::to_string(n) +
                           " ranks";
  EXPECT_MSG(group.error == 0, what + ": failed");
  EXPECT_MSG(device.guards_intact(), what + ": wrote beyond an array");
  for (size_t r = 0; r < static_cast<size_t>(n); ++r) {
    EXPECT_MSG(std::memcmp(device.outs[r]->memory, host.outs[r]->memory, host.outs[r]->num_bytes) == 0,
               what + ": rank " + std::to_string(r) + " differs from the host's");
    if (layout.in_place) continue;
    EXPECT_MSG(std::memcmp(device.ins[r]->memory, host.ins[r]->memory, host.ins[r]->num_bytes) == 0,
               what + ": rank " + std::to_string(r) + "'s input was changed");
  }
}

/// Counts: none, fewer than ranks, with tails, several turns of a block (1024 elements of float32 each).
CHECK_CASE(cuda_direct_has_the_hosts_bits) {
  for (const int n : {2, 3, 4, 5, 8}) {
    for (const DType dtype : kTypes) {
      EmulatedGroup group(n, 2, 256);
      for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg}) {
        size_t turn = 0;
        for (const size_t count : {size_t{0}, size_t{3}, size_t{1000}, size_t{12345}}) {
          compare_direct(group, direct_call(dtype, op, count), kLayouts[turn++ % 4], false);
          compare_direct(group, direct_call(dtype, op, count), kLayouts[turn % 2 * 2], true);
        }
      }
    }
  }
}

CHECK_CASE(cuda_direct_is_chosen_where_it_pays) {
  EXPECT(!cuda_direct_pays(1 << 20, 1, false));
  EXPECT(!cuda_direct_pays(1 << 16, 8, false));
  EXPECT(cuda_direct_pays((1 << 16) + 4, 8, false));
  EXPECT(cuda_direct_pays(1 << 20, 2, true));
  EXPECT(!cuda_direct_pays(1 << 20, 3, true));
  EXPECT(!cuda_direct_pays(1 << 20, kMaxCudaDirectRanks + 1, false));
  CudaRequest request;
  request.algo = Algo::kDirect;
  request.dtype = request.wire = DType::kF32;
  request.count = 1 << 20;
  const CudaShape shape{4, 2, 4096, 3072};
  EXPECT_EQ(choose_cuda(request, shape).plan.chunk_count, size_t{1} << 18);
  EXPECT(!choose_cuda(request, shape).key.variant);
  request.pulled = true;
  EXPECT_EQ(choose_cuda(request, shape).plan.chunk_count, size_t{1} << 20);
  EXPECT(choose_cuda(request, shape).key.variant);
  EXPECT(choose_cuda(request, {1, 2, 4096, 3072}).key.algo == Algo::kTwoShot);
}

/// Each rank fills its array, reduces it, reads the result, and begins again: nobody else may be at it meanwhile.
void lend(int n, bool pulled) {
  constexpr size_t kCount = 700;
  constexpr int kTurns = 12;
  const CollectiveCall call = direct_call(DType::kF32, ReduceOp::kSum, kCount);
  ProcessRanks ranks(n, 2, 256);
  std::vector<std::vector<float>> in(static_cast<size_t>(n), std::vector<float>(kCount));
  std::vector<std::vector<float>> out(static_cast<size_t>(n), std::vector<float>(kCount));
  std::vector<CudaArrays> all;
  for (size_t r = 0; r < static_cast<size_t>(n); ++r)
    all.push_back({in[r].data(), pulled ? out[r].data() : in[r].data()});
  std::vector<int> wrong(static_cast<size_t>(n));
  for_each_rank(n, [&](int rank) {
    const auto r = static_cast<size_t>(rank);
    Numbers random(static_cast<uint64_t>(n * 10 + rank));
    for (int turn = 0; turn < kTurns; ++turn) {
      sleep_a_little(random);
      for (size_t i = 0; i < kCount; ++i) in[r][i] = static_cast<float>((turn + 1) * (rank + 1) + static_cast<int>(i));
      sleep_a_little(random);
      ranks.launch_direct(rank, call, all, pulled, 77, kHangNs);
      const float* const result = static_cast<const float*>(all[r].out);
      for (size_t i = 0; i < kCount; ++i) {
        const int expected = (turn + 1) * n * (n + 1) / 2 + n * static_cast<int>(i);
        wrong[r] += result[i] != static_cast<float>(expected);
      }
    }
  });
  for (int rank = 0; rank < n; ++rank) {
    EXPECT_EQ(ranks.error(rank), uint64_t{0});
    EXPECT_EQ(wrong[static_cast<size_t>(rank)], 0);
  }
}

CHECK_CASE(cuda_protocol_direct) { lend(3, false); }

CHECK_CASE(cuda_protocol_pulled) { lend(3, true); }

/// Ranks that mean different arrays: neither is read or written, on any channel, whoever comes first.
CHECK_CASE(cuda_direct_disagreement_touches_nothing) {
  constexpr size_t kCount = 4000;
  for (int turn = 0; turn < 4; ++turn) {
    ProcessRanks ranks(2, 2, 256);
    const CollectiveCall call = direct_call(DType::kF32, ReduceOp::kSum, kCount);
    std::array<std::vector<float>, 2> arrays;
    for (auto& array : arrays) array.assign(kCount, 1.0f);
    const std::vector<CudaArrays> all{{arrays[0].data(), arrays[0].data()}, {arrays[1].data(), arrays[1].data()}};
    for_each_rank(2, [&](int rank) {
      if (turn % 2 == rank) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ranks.launch_direct(rank, call, all, false, static_cast<uint64_t>(100 + rank), kHangNs);
    });
    for (const int rank : {0, 1}) {
      EXPECT_EQ(ranks.error_code(rank), static_cast<int>(ErrorCode::kMismatch));
      for (const float value : arrays[static_cast<size_t>(rank)]) EXPECT_EQ(value, 1.0f);
    }
  }
}

/// One of three goes elsewhere: into another collective, which looks at the calls as ever.
CHECK_CASE(cuda_direct_against_another_collective) {
  ProcessRanks ranks(3, 2, 256);
  const CollectiveCall call = direct_call(DType::kF32, ReduceOp::kSum, 300);
  const CollectiveCall staged = all_reduce_call(Algo::kTwoShot, {DType::kF32, DType::kF32}, ReduceOp::kSum, 300);
  const Arrays arrays(call, 3, kLayouts[1]);
  for_each_rank(3, [&](int rank) {
    if (rank == 1) {
      ranks.launch(rank, staged, arrays.arrays[1], 2, kHangNs);
    } else {
      ranks.launch_direct(rank, call, arrays.arrays, false, 1, kHangNs);
    }
  });
  for (const int rank : {0, 1, 2}) EXPECT_EQ(ranks.error_code(rank), static_cast<int>(ErrorCode::kMismatch));
}

}  // namespace
}  // namespace dcomm::checks::cuda
