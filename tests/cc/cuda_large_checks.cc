// Counts beyond 2^32 elements and bytes on the way to a GPU: plans, and where the kernels read and write.
//
// No data of that size is moved: the arrays are reserved addresses, of which only the few pages that are touched exist.
#include <sys/mman.h>

#include <string>

#include "cuda_emulated_group.h"

namespace dcomm::checks::cuda {
namespace {

constexpr size_t k2To32 = size_t{1} << 32;

/// Every segment of a plan, all channels and turns: in order without a gap from 0 to count, each fits a slot.
void expect_covers(const CudaChoice& choice, size_t count, int num_chunks, size_t slot_count, const std::string& what) {
  const ChunkPlan& plan = choice.plan;
  size_t next = 0;
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    for (uint64_t tile = 0; tile < plan.num_tiles(); ++tile) {
      for (int channel = 0; channel < plan.num_channels; ++channel) {
        const Range range = plan.segment(chunk, channel, tile);
        if (range.count == 0) continue;
        if (range.offset != next || range.count > slot_count) {
          EXPECT_MSG(false, what + ": a segment of " + std::to_string(range.count) + " begins at " +
                                std::to_string(range.offset) + " and not at " + std::to_string(next));
          return;
        }
        next += range.count;
      }
    }
  }
  EXPECT_MSG(next == count, what + ": ends at " + std::to_string(next));
}

CHECK_CASE(cuda_large_plans) {
  const CudaShape shape{3, 32, size_t{128} << 10, kCudaPacketDataBytes};
  for (const size_t count : {k2To32 / 4 + 5, k2To32 - 1, k2To32, k2To32 + 7, 5 * k2To32 + 3}) {
    for (const Algo algo : {Algo::kAuto, Algo::kTwoShot, Algo::kRing, Algo::kTree, Algo::kOneShot}) {
      CudaRequest request{Collective::kAllReduce, algo, DType::kF32, DType::kF16, count};
      const CudaChoice choice = choose_cuda(request, shape);
      EXPECT(!is_in_packets(choice.key));
      if (algo == Algo::kAuto) EXPECT(choice.key.algo == Algo::kTwoShot);
      const int num_chunks = algo == Algo::kTree ? kNumTrees : algo == Algo::kOneShot ? 1 : shape.world_size;
      expect_covers(choice, count, num_chunks, shape.slot_bytes / 2, algo_name(algo) + std::to_string(count));
    }
    for (const Collective collective : {Collective::kBroadcast, Collective::kAllGather, Collective::kGather,
                                        Collective::kScatter, Collective::kAllToAll, Collective::kSend}) {
      const CudaChoice choice =
          choose_cuda(CudaRequest{collective, Algo::kFlat, DType::kC64, DType::kC64, count}, shape);
      expect_covers(choice, count * 8, 1, shape.slot_bytes, collective_name(collective) + std::to_string(count));
    }
    const CudaChoice choice =
        choose_cuda(CudaRequest{Collective::kReduceScatter, Algo::kFlat, DType::kF32, DType::kF32, count}, shape);
    expect_covers(choice, count, 1, shape.slot_bytes / 4, "reduce_scatter" + std::to_string(count));
  }
}

/// Addresses of which pages exist once they are written.
class Reserved {
 public:
  explicit Reserved(size_t num_bytes)
      : num_bytes_(num_bytes),
        base_(mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    EXPECT(base_ != MAP_FAILED);
  }
  ~Reserved() { munmap(base_, num_bytes_); }
  Reserved(const Reserved&) = delete;
  Reserved& operator=(const Reserved&) = delete;
  std::byte* at(size_t offset) const { return static_cast<std::byte*>(base_) + offset; }

 private:
  const size_t num_bytes_;
  void* const base_;
};

/// One block of a group of two ranks, with the executor of rank 0 for whatever `f` does with its kernels.
template <class F>
void run_block(const CudaArrays& arrays, const F& f) {
  EmulatedGroup group(2, 1, 4096);
  CollectiveCall call;
  call.collective = Collective::kBarrier;
  const Launch launch = make_launch(group, call, {arrays, arrays});
  gpu::Block block;
  std::vector<std::byte*> shared(2);
  std::vector<std::thread> threads;
  for (int lane = 0; lane < gpu::kBlockThreads; ++lane) {
    threads.emplace_back([&, lane] {
      gpu::current_block = &block;
      gpu::current_thread = lane;
      gpu::current_vote = 0;
      CudaBlockExec exec(launch.job, 0, 0, shared.data());
      f(exec);
      exec.sync();
    });
  }
  for (auto& thread : threads) thread.join();
}

constexpr size_t kCount = 100;

/// Where the range begins: around what 31 and 32 bits hold, of elements and of bytes.
std::vector<size_t> offsets(size_t element_bytes) {
  std::vector<size_t> found;
  for (const size_t edge : {k2To32 / 2, k2To32, k2To32 / element_bytes, k2To32 / 2 / element_bytes}) {
    for (const size_t begin : {edge - 50, edge, edge + 1}) found.push_back(begin);
  }
  found.push_back(k2To32 + k2To32 / 4);
  return found;
}

/// f(exec, arrays, range, slot, other slot) reads in[range] and writes out[range]: the same far out as at the start.
template <class F>
void expect_same_far_out(DType dtype, const F& f) {
  const size_t element_bytes = dtype_bytes(dtype);
  const size_t num_bytes = (k2To32 + k2To32 / 4 + 2 * kCount) * element_bytes;
  const Reserved in(num_bytes), out(num_bytes);
  const auto run = [&](size_t begin) {
    Zeroed slot(4096), other(4096);
    Numbers(1).fill(dtype, other.memory, kCount);
    Numbers(2).fill(dtype, in.at(begin * element_bytes), kCount);
    const CudaArrays arrays{in.at(0), out.at(0)};
    run_block(arrays, [&](CudaBlockExec& exec) { f(exec, arrays, Range{begin, kCount}, slot.memory, other.memory); });
    std::vector<std::byte> found(slot.memory, slot.memory + kCount * element_bytes);
    const std::byte* const result = out.at(begin * element_bytes);
    found.insert(found.end(), result, result + kCount * element_bytes);
    return found;
  };
  const std::vector<std::byte> expected = run(0);
  for (const size_t begin : offsets(element_bytes)) {
    EXPECT_MSG(run(begin) == expected, std::string(dtype_name(dtype)) + " from element " + std::to_string(begin));
  }
}

/// Each verb by itself, on arrays that nothing has been written to.
template <class User, class Wire>
void expect_sums_far_out() {
  using Unrolled = CudaReduceKernels<User, Wire, 2, false>;
  using Any = CudaReduceKernels<User, Wire, 0, false>;
  const auto expect = [](const auto& f) {
    expect_same_far_out(User::kDType, [&](CudaBlockExec& exec, const CudaArrays& arrays, Range range, std::byte* slot,
                                          std::byte* other) { f(exec, arrays, range, slot, other); });
  };
  using Exec = CudaBlockExec;
  expect([](Exec& exec, const CudaArrays& arrays, Range range, std::byte* slot, std::byte*) {
    Any(arrays, 1.0f).encode(exec, slot, range);
  });
  expect([](Exec& exec, const CudaArrays& arrays, Range range, std::byte*, std::byte* other) {
    Any(arrays, 1.0f).decode(exec, range, other);
  });
  expect([](Exec& exec, const CudaArrays& arrays, Range range, std::byte* slot, std::byte* other) {
    Any(arrays, 1.0f).accumulate(exec, slot, other, range);
  });
  expect([](Exec& exec, const CudaArrays& arrays, Range range, std::byte* slot, std::byte* other) {
    Any(arrays, 1.0f).finish(exec, slot, other, range);
  });
  expect([](Exec& exec, const CudaArrays& arrays, Range range, std::byte* slot, std::byte* other) {
    Any(arrays, 1.0f).forward(exec, slot, other, range);
  });
  expect([](Exec& exec, const CudaArrays& arrays, Range range, std::byte* slot, std::byte* other) {
    Any(arrays, 1.0f).combine(exec, range, [&](int) { return other; }, 1, [&](int) { return slot; }, 1, true);
  });
  expect([](Exec& exec, const CudaArrays& arrays, Range range, std::byte* slot, std::byte* other) {
    Any(arrays, 1.0f).reduce_canonical(exec, range, [&](int) { return other; }, [&](int) { return slot; });
  });
  expect([](Exec& exec, const CudaArrays& arrays, Range range, std::byte* slot, std::byte* other) {
    Unrolled(arrays, 1.0f).reduce_canonical(exec, range, [&](int) { return other; }, [&](int) { return slot; });
  });
}

CHECK_CASE(cuda_large_offsets_of_sums) {
  expect_sums_far_out<CudaF32, CudaF32>();
  expect_sums_far_out<CudaF32, CudaBF16>();
  expect_sums_far_out<CudaF16, CudaF16>();
}

CHECK_CASE(cuda_large_offsets_of_moves) {
  const auto bytes_of = [](Range range) { return Range{2 * range.offset, 2 * range.count}; };
  using Exec = CudaBlockExec;
  expect_same_far_out(DType::kF16, [&](Exec& exec, const CudaArrays& arrays, Range range, std::byte* slot, std::byte*) {
    CudaMoveKernels(arrays).encode(exec, slot, bytes_of(range));
  });
  expect_same_far_out(DType::kF16,
                      [&](Exec& exec, const CudaArrays& arrays, Range range, std::byte*, std::byte* other) {
                        CudaMoveKernels(arrays).decode(exec, bytes_of(range), other);
                      });
  expect_same_far_out(DType::kF16, [&](Exec& exec, const CudaArrays& arrays, Range range, std::byte*, std::byte*) {
    CudaMoveKernels(arrays).keep(exec, 2 * range.offset, bytes_of(range));
  });
  const CudaEqualBlocks blocks{k2To32 + 48, 4096, 1};
  EXPECT_EQ(blocks.send_block(7).offset, 7 * (k2To32 + 48));
  EXPECT_EQ(blocks.recv_block(7).count, k2To32 + 48);
}

/// reduce_scatter: a term that lies far out, of a result that does not.
CHECK_CASE(cuda_large_offsets_of_blocks) {
  const Reserved in((k2To32 + k2To32 / 4 + 2 * kCount) * 4);
  const auto run = [&](size_t begin) {
    Zeroed out(4096), other(4096);
    Numbers(1).fill(DType::kF32, other.memory, kCount);
    Numbers(2).fill(DType::kF32, in.at(begin * 4), kCount);
    const CudaArrays arrays{in.at(0), out.memory};
    run_block(arrays, [&](CudaBlockExec& exec) {
      const CudaReduceKernels<CudaF32, CudaF32, 2, false> kernels(arrays, 1.0f);
      kernels.shifted_out(begin).reduce_canonical(
          exec, Range{begin, kCount}, [&](int) { return other.memory; }, NoOutputs{});
    });
    return std::vector<std::byte>(out.memory, out.memory + kCount * 4);
  };
  const std::vector<std::byte> expected = run(0);
  for (const size_t begin : offsets(4)) EXPECT_MSG(run(begin) == expected, "from element " + std::to_string(begin));
}

}  // namespace
}  // namespace dcomm::checks::cuda
