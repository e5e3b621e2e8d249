// All-reduces on fp8 wires by the CUDA kernel on emulated blocks, bit for bit against the host executor.
#include "cuda_emulated_group.h"

namespace dcomm::checks::cuda {
namespace {

constexpr DType kWires[] = {DType::kF8Block32, DType::kF8Block128};

CollectiveCall call_of(DType wire, ReduceOp op, size_t count) {
  return all_reduce_call(Algo::kTwoShot, {DType::kF32, wire}, op, count);
}

CHECK_CASE(cuda_fp8_matches_host) {
  for (const int n : {1, 2, 3, 4, 5, 8}) {
    EmulatedGroup group(n, 2, 4096);
    size_t turn = static_cast<size_t>(n);
    for (const DType wire : kWires) {
      for (const size_t count : {0, 1, 33, 128, 1000, 5001}) {
        compare(group, call_of(wire, turn % 2 == 0 ? ReduceOp::kSum : ReduceOp::kAvg, count), kLayouts[turn % 4]);
        ++turn;
      }
    }
  }
}

/// "auto" and two_shot; one kernel for both sizes of blocks.
CHECK_CASE(cuda_fp8_has_one_kernel) {
  EmulatedGroup group(4, 2, 4096);
  const CudaShape shape{4, 2, 4096, kCudaPacketDataBytes};
  for (const DType wire : kWires) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{100'000}}) {
      const CudaChoice choice = choose_cuda({Collective::kAllReduce, Algo::kAuto, DType::kF32, wire, count}, shape);
      EXPECT(choice.key == TwoShotBlocksBody::kKey);
      EXPECT_EQ(choice.plan.chunk_count % block_count_of(wire), size_t{0});
      EXPECT_EQ(choice.plan.segment_count % block_count_of(wire), size_t{0});
      EXPECT(choice.plan.segment_count <= slot_capacity(wire, 4096));
    }
    CollectiveCall call = call_of(wire, ReduceOp::kSum, 10);
    call.algo = Algo::kRing;
    EXPECT(find_launch(group, call, std::vector<CudaArrays>(4)).body == nullptr);
    call = call_of(wire, ReduceOp::kSum, 10);
    call.dtype = DType::kF16;
    EXPECT(find_launch(group, call, std::vector<CudaArrays>(4)).body == nullptr);
  }
}

/// What tools/run_mutations.py breaks.
CHECK_CASE(cuda_protocol_fp8) {
  EmulatedGroup group(3, 1, 4096);
  for (const DType wire : kWires) compare(group, call_of(wire, ReduceOp::kAvg, 3001), kLayouts[0]);
}

}  // namespace
}  // namespace dcomm::checks::cuda
