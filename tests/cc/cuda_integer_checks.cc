// Sums of integers and bool by the CUDA kernels on emulated blocks, bit for bit against the host executor; and what has
// no kernel.
#include "cuda_emulated_group.h"
#include "launch/cuda_call_rules.h"

namespace dcomm::checks::cuda {
namespace {

constexpr DType kIntegers[] = {DType::kI8, DType::kU8, DType::kI32, DType::kI64, DType::kBool};

CollectiveCall sum_of(Collective collective, Algo algo, DType dtype, size_t count, int root = 0) {
  CollectiveCall call = all_reduce_call(algo, {dtype, dtype}, ReduceOp::kSum, count);
  call.collective = collective;
  call.root = root;
  return call;
}

/// One group for all: its counters go on, and roots change.
void compare_all(Collective collective, Algo algo, int world_size) {
  EmulatedGroup group(world_size, 2, 256);
  const size_t counts[] = {0, 1, 7, 16, 333, 1000, 2049, 130};
  size_t turn = static_cast<size_t>(world_size);
  for (const DType dtype : kIntegers) {
    for (int i = 0; i < 4; ++i, ++turn) {
      const int root = static_cast<int>(turn) % world_size;
      compare(group, sum_of(collective, algo, dtype, counts[(turn * 3) % 8], root), kLayouts[turn % 4]);
    }
  }
}

CHECK_CASE(cuda_integers_two_shot_matches_host) {
  for (const int n : {1, 2, 3, 4, 5, 8}) compare_all(Collective::kAllReduce, Algo::kTwoShot, n);
}

CHECK_CASE(cuda_integers_ring_matches_host) {
  for (const int n : {2, 3, 4, 5}) compare_all(Collective::kAllReduce, Algo::kRing, n);
}

CHECK_CASE(cuda_integers_reduce_scatter_matches_host) {
  for (const int n : {1, 2, 3, 4, 5}) compare_all(Collective::kReduceScatter, Algo::kFlat, n);
}

CHECK_CASE(cuda_integers_reduce_matches_host) {
  for (const int n : {1, 2, 3, 4}) compare_all(Collective::kReduce, Algo::kFlat, n);
}

/// A lane has several packs, all but the last pass full: slots of 4 KiB, emulated blocks of four lanes.
CHECK_CASE(cuda_integers_in_many_packs) {
  EmulatedGroup group(3, 1, 4096);
  for (const DType dtype : kIntegers) {
    for (const Algo algo : {Algo::kTwoShot, Algo::kRing}) {
      compare(group, sum_of(Collective::kAllReduce, algo, dtype, 6000), kLayouts[1]);
      compare(group, sum_of(Collective::kAllReduce, algo, dtype, 1111), kLayouts[0]);
    }
  }
}

/// All pairs of bytes at each place of a word, between bytes that carry; and what wraps in wider ones.
CHECK_CASE(cuda_integers_wrap) {
  for (int place = 0; place < 32; place += 8) {
    const uint32_t beside = ~(0xffu << place);
    for (uint32_t a = 0; a < 256; ++a) {
      for (uint32_t b = 0; b < 256; ++b) {
        const uint32_t sum = CudaI8::add((a << place) | beside, (b << place) | beside);
        EXPECT_EQ(sum, (((a + b) & 0xffu) << place) | (0xfefefefeu & beside));
      }
    }
  }
  EXPECT_EQ(CudaI32::add(0x7fffffffu, 1u), 0x80000000u);
  EXPECT_EQ(CudaI32::add(0xffffffffu, 0xffffffffu), 0xfffffffeu);
  CudaBlock<CudaI64, 2> sum{{0xffffffffu, 0xffffffffu, 0xffffffffu, 0}};
  add_integers(sum, CudaBlock<CudaI64, 2>{{1, 0, 1, 0}});
  const uint32_t expected[4] = {0, 0, 0, 1};  // the carry crosses a word, not an element
  for (int w = 0; w < 4; ++w) EXPECT_EQ(sum.words[w], expected[w]);
}

/// "auto" is two_shot at any size; what needs packets, a tree, a wire or a division is refused.
CHECK_CASE(cuda_integers_have_two_kernels) {
  EmulatedGroup group(4, 2, 4096);
  const CudaShape shape{4, 2, 4096, kCudaPacketDataBytes};
  const auto finds = [&](const CollectiveCall& call) {
    return find_launch(group, call, std::vector<CudaArrays>(4)).body != nullptr;
  };
  for (const DType dtype : kIntegers) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{100'000}}) {
      const CudaChoice choice = choose_cuda({Collective::kAllReduce, Algo::kAuto, dtype, dtype, count}, shape);
      EXPECT(choice.key.algo == Algo::kTwoShot && !is_in_packets(choice.key));
    }
    for (const Algo algo : {Algo::kAuto, Algo::kTwoShot, Algo::kRing, Algo::kOneShot, Algo::kTree}) {
      const bool there_is = algo != Algo::kOneShot && algo != Algo::kTree;
      EXPECT_EQ(has_cuda_algo(algo, dtype), there_is);
      EXPECT_EQ(finds(sum_of(Collective::kAllReduce, algo, dtype, 10)), there_is);
    }
    EXPECT(!finds(all_reduce_call(Algo::kTwoShot, {dtype, DType::kF16}, ReduceOp::kSum, 10)));
    DcommCudaCall call{};
    call.collective = static_cast<int32_t>(Collective::kAllReduce);
    call.dtype = call.wire = static_cast<int32_t>(dtype);
    EXPECT(is_known_call(call, 4));
    call.op = static_cast<int32_t>(ReduceOp::kAvg);
    EXPECT(!is_known_call(call, 4));
  }
  EXPECT(has_cuda_algo(Algo::kTree, DType::kBF16));
}

}  // namespace
}  // namespace dcomm::checks::cuda
