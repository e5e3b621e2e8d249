// The CUDA executor and kernels on emulated blocks (cuda_emulation.h), bit for bit against the host executor.
#include "cuda_emulation.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "algo/all_reduce_ring.h"
#include "algo/all_reduce_two_shot.h"
#include "base/dtype.h"
#include "check.h"
#include "exec/cuda_block_exec.cuh"
#include "exec/cuda_pack_kernels.cuh"
#include "launch/cuda_plan.h"
#include "launch/host_launch.h"

namespace dcomm {
namespace {

constexpr uint64_t kTimeoutNs = 60'000'000'000;

struct Zeroed {
  explicit Zeroed(size_t num_bytes)
      : memory(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, round_up(num_bytes, kPageBytes)))) {
    std::fill_n(memory, round_up(num_bytes, kPageBytes), std::byte{0});
  }
  ~Zeroed() { std::free(memory); }
  Zeroed(const Zeroed&) = delete;
  Zeroed& operator=(const Zeroed&) = delete;
  std::byte* const memory;
};

/// What _cuda.so keeps on the device.
struct EmulatedGroup {
  EmulatedGroup(int world_size_, int num_channels_, size_t slot_bytes_)
      : world_size(world_size_),
        num_channels(num_channels_),
        slot_bytes(slot_bytes_),
        counters(static_cast<size_t>(world_size_ * num_channels_)) {
    const size_t window_bytes = cuda_window_layout(world_size, num_channels, slot_bytes).window_bytes();
    for (int r = 0; r < world_size; ++r) {
      storage.push_back(std::make_unique<Zeroed>(window_bytes));
      windows.push_back(storage.back()->memory);
    }
  }
  const int world_size;
  const int num_channels;
  const size_t slot_bytes;
  std::vector<CudaCounters> counters;
  std::vector<std::unique_ptr<Zeroed>> storage;
  std::vector<std::byte*> windows;
  uint32_t stop = 0;
  uint64_t error = 0;
};

template <class User, class Wire, int kRanks>
void two_shot_kernel(const CudaJob& job, int local_rank, int channel, std::byte** shared) {
  CudaBlockExec exec(job, local_rank, channel, shared);
  const CudaKernels<User, Wire, kRanks, divides_terms(User::kDType, Wire::kDType, false)> kernels(
      job.arrays[local_rank], job.divisor);
  all_reduce_two_shot(exec, kernels, job.plan);
}

template <class User, class Wire>
void ring_kernel(const CudaJob& job, int local_rank, int channel, std::byte** shared) {
  CudaBlockExec exec(job, local_rank, channel, shared);
  const CudaKernels<User, Wire, 0, divides_terms(User::kDType, Wire::kDType, true)> kernels(job.arrays[local_rank],
                                                                                            job.divisor);
  all_reduce_ring(exec, kernels, job.plan);
}

using Kernel = void (*)(const CudaJob&, int, int, std::byte**);

template <class User, class Wire>
Kernel kernel_for(Algo algo, int world_size) {
  if (algo == Algo::kRing) return &ring_kernel<User, Wire>;
  switch (world_size) {
    case 2:
      return &two_shot_kernel<User, Wire, 2>;
    case 4:
      return &two_shot_kernel<User, Wire, 4>;
    case 8:
      return &two_shot_kernel<User, Wire, 8>;
    default:
      return &two_shot_kernel<User, Wire, 0>;
  }
}

Kernel find_kernel(const CollectiveCall& call, int world_size) {
  if (call.dtype == DType::kF32 && call.wire == DType::kF32) return kernel_for<CudaF32, CudaF32>(call.algo, world_size);
  if (call.dtype == DType::kF32 && call.wire == DType::kBF16) {
    return kernel_for<CudaF32, CudaBF16>(call.algo, world_size);
  }
  if (call.dtype == DType::kF32) return kernel_for<CudaF32, CudaF16>(call.algo, world_size);
  if (call.dtype == DType::kBF16) return kernel_for<CudaBF16, CudaBF16>(call.algo, world_size);
  return kernel_for<CudaF16, CudaF16>(call.algo, world_size);
}

CudaJob make_job(EmulatedGroup& group, const CollectiveCall& call, const std::vector<CudaArrays>& arrays) {
  CudaJob job{};
  job.world_size = group.world_size;
  job.num_channels = group.num_channels;
  job.divisor = call.op == ReduceOp::kAvg ? static_cast<float>(group.world_size) : 1.0f;
  job.slot_bytes = group.slot_bytes;
  job.timeout_ns = kTimeoutNs;
  job.windows = group.windows.data();
  job.counters = group.counters.data();
  job.abort = &group.stop;
  job.error = &group.error;
  job.plan = cuda_plan(call.count, group.world_size, dtype_bytes(call.wire), group.slot_bytes, group.num_channels);
  std::copy(arrays.begin(), arrays.end(), job.arrays);
  return job;
}

/// One grid: ranks x channels blocks; `absent` (if >= 0) stays away.
void run_grid(const CudaJob& job, Kernel kernel, int absent = -1) {
  std::vector<std::thread> threads;
  std::vector<std::unique_ptr<gpu::Block>> blocks;
  std::vector<std::vector<std::byte*>> shared;
  const auto num_blocks = static_cast<size_t>(job.world_size * job.num_channels);
  shared.resize(num_blocks, std::vector<std::byte*>(static_cast<size_t>(job.world_size)));
  for (size_t b = 0; b < num_blocks; ++b) blocks.push_back(std::make_unique<gpu::Block>());
  for (size_t b = 0; b < num_blocks; ++b) {
    const int rank = static_cast<int>(b) / job.num_channels;
    const int channel = static_cast<int>(b) % job.num_channels;
    if (rank == absent) continue;
    for (int lane = 0; lane < gpu::kBlockThreads; ++lane) {
      threads.emplace_back([&, b, rank, channel, lane] {
        gpu::current_block = blocks[b].get();
        gpu::current_thread = lane;
        gpu::current_vote = 0;
        kernel(job, rank, channel, shared[b].data());
      });
    }
  }
  for (auto& thread : threads) thread.join();
}

/// The host executor's ranks: one thread each over plain memory.
class PlainWindows : public Windows {
 public:
  PlainWindows(int world_size, size_t window_bytes) {
    window_bytes_ = window_bytes;
    for (int r = 0; r < world_size; ++r) {
      storage_.push_back(std::make_unique<Zeroed>(window_bytes));
      bases_.push_back(storage_.back()->memory);
    }
  }

 private:
  std::vector<std::unique_ptr<Zeroed>> storage_;
};

void run_host(int world_size, const CollectiveCall& call, const std::vector<CudaArrays>& arrays) {
  const WindowLayout layout{Placement{PlacementKind::kBounce, world_size, 2}, 1, 1024, 1024};
  const auto windows = std::make_shared<PlainWindows>(world_size, layout.window_bytes());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      HostContext context(rank, windows, layout);
      HostOp op;
      op.seq = 1;
      op.hash = 1;
      op.policy.yield_ns = 1'000'000;
      LaneScratch scratch(context);
      CollectiveCall mine = call;
      mine.in = arrays[static_cast<size_t>(rank)].in;
      mine.out = arrays[static_cast<size_t>(rank)].out;
      run_single_lane(context, op, mine, *kernel_table_scalar(), scratch, nullptr);
    });
  }
  for (auto& thread : threads) thread.join();
}

/// Deterministic values of every kind: ordinary, denormal, huge, infinite, NaN.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state_ >> 32);
  }
  void fill(DType dtype, std::byte* to, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      const uint32_t kind = next() % 16;
      uint32_t bits = next();
      if (dtype == DType::kF32) {
        if (kind > 3) bits = f32_bits(static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-24f);
        std::memcpy(to + i * 4, &bits, 4);
      } else {
        const float ordinary = static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-24f;
        auto half = static_cast<uint16_t>(bits >> 8);
        if (kind > 3) half = dtype == DType::kF16 ? f16_from_f32(ordinary) : bf16_from_f32(ordinary);
        std::memcpy(to + i * 2, &half, 2);
      }
    }
  }

 private:
  uint64_t state_;
};

struct Layout {
  bool in_place;
  size_t shift;  // elements by which arrays miss the alignment of packs
};

/// The arrays of all ranks, with a guard after each that must stay as it is.
struct Arrays {
  static constexpr size_t kGuard = 64;
  Arrays(int world_size, size_t count, size_t element_bytes, const Layout& layout)
      : num_bytes(count * element_bytes), shift_bytes(layout.shift * element_bytes) {
    for (int r = 0; r < world_size; ++r) {
      ins.push_back(std::make_unique<Zeroed>(num_bytes + shift_bytes + kGuard));
      outs.push_back(std::make_unique<Zeroed>(num_bytes + shift_bytes + kGuard));
      std::byte* const in = ins.back()->memory + shift_bytes;
      std::byte* const out = layout.in_place ? in : outs.back()->memory + shift_bytes;
      std::fill_n(in + num_bytes, kGuard, std::byte{0x5a});
      std::fill_n(out + num_bytes, kGuard, std::byte{0x5a});
      arrays.push_back({in, out});
    }
  }
  std::byte* in(int rank) const { return ins[static_cast<size_t>(rank)]->memory + shift_bytes; }
  std::byte* out(int rank) const { return static_cast<std::byte*>(arrays[static_cast<size_t>(rank)].out); }
  bool guards_intact() const {
    for (const CudaArrays& both : arrays) {
      for (const auto* array : {static_cast<const std::byte*>(both.in), static_cast<const std::byte*>(both.out)}) {
        if (!std::all_of(array + num_bytes, array + num_bytes + kGuard,
                         [](std::byte b) { return b == std::byte{0x5a}; })) {
          return false;
        }
      }
    }
    return true;
  }
  const size_t num_bytes;
  const size_t shift_bytes;
  std::vector<std::unique_ptr<Zeroed>> ins, outs;
  std::vector<CudaArrays> arrays;
};

void compare(EmulatedGroup& group, const CollectiveCall& call, const Layout& layout) {
  const int n = group.world_size;
  const size_t element_bytes = dtype_bytes(call.dtype);
  Arrays device(n, call.count, element_bytes, layout);
  Arrays host(n, call.count, element_bytes, Layout{false, 0});
  for (int r = 0; r < n; ++r) {
    Numbers(call.count * 131 + static_cast<size_t>(r)).fill(call.dtype, device.in(r), call.count);
    std::memcpy(host.in(r), device.in(r), device.num_bytes);
  }
  run_host(n, call, host.arrays);
  run_grid(make_job(group, call, device.arrays), find_kernel(call, n));
  const std::string what = std::string(algo_name(call.algo)) + " " + dtype_name(call.dtype) + " on " +
                           dtype_name(call.wire) + ", " + reduce_op_name(call.op) + " of " +
                           std::to_string(call.count) + ", " + std::to_string(n) + " ranks";
  EXPECT_MSG(group.error == 0, what + ": failed");
  EXPECT_MSG(device.guards_intact(), what + ": wrote beyond an array");
  for (int r = 0; r < n; ++r) {
    EXPECT_MSG(std::memcmp(device.out(r), host.out(0), device.num_bytes) == 0,
               what + ": rank " + std::to_string(r) + " differs from the host's rank 0");
  }
}

constexpr DType kPairs[][2] = {{DType::kF32, DType::kF32},
                               {DType::kF32, DType::kBF16},
                               {DType::kF32, DType::kF16},
                               {DType::kBF16, DType::kBF16},
                               {DType::kF16, DType::kF16}};

CollectiveCall all_reduce_call(Algo algo, const DType (&pair)[2], ReduceOp op, size_t count) {
  CollectiveCall call;
  call.collective = Collective::kAllReduce;
  call.algo = algo;
  call.dtype = pair[0];
  call.wire = pair[1];
  call.op = op;
  call.count = count;
  return call;
}

void compare_all(Algo algo, int world_size, int num_channels) {
  EmulatedGroup group(world_size, num_channels, 256);  // one group for all: its counters go on
  const size_t counts[] = {0, 1, 7, 8, 333, 1000, 2049, 130};
  const Layout layouts[] = {{false, 0}, {true, 0}, {false, 1}, {true, 3}};
  size_t turn = static_cast<size_t>(world_size);
  for (const auto& pair : kPairs) {
    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg}) {
      for (int i = 0; i < 3; ++i, ++turn) {
        compare(group, all_reduce_call(algo, pair, op, counts[(turn * 3) % 8]), layouts[turn % 4]);
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

CHECK_CASE(cuda_two_shot_many_ranks) {
  for (const int n : {22, 33}) {
    EmulatedGroup group(n, 1, 256);
    for (const auto& pair : {kPairs[0], kPairs[1]}) {
      compare(group, all_reduce_call(Algo::kTwoShot, {pair[0], pair[1]}, ReduceOp::kAvg, 1500), Layout{false, 0});
    }
  }
}

CHECK_CASE(cuda_algorithms_alternate) {
  EmulatedGroup group(3, 2, 256);
  for (int i = 0; i < 6; ++i) {
    const Algo algo = i % 2 == 0 ? Algo::kRing : Algo::kTwoShot;
    compare(group, all_reduce_call(algo, kPairs[static_cast<size_t>(i) % 5], ReduceOp::kSum, 700), Layout{false, 0});
  }
}

/// A rank that never comes: all others leave, the first to give up says whom it waited for.
CHECK_CASE(cuda_missing_rank_ends_the_grid) {
  for (const Algo algo : {Algo::kRing, Algo::kTwoShot}) {
    EmulatedGroup group(4, 2, 256);
    const CollectiveCall call = all_reduce_call(algo, kPairs[0], ReduceOp::kSum, 1000);
    Arrays arrays(4, call.count, 4, Layout{false, 0});
    CudaJob job = make_job(group, call, arrays.arrays);
    job.timeout_ns = 100'000'000;
    run_grid(job, find_kernel(call, 4), 2);
    EXPECT_EQ(static_cast<int>(group.error >> 56), static_cast<int>(ErrorCode::kTimeout));
    EXPECT(group.stop != 0);
    const int culprit = static_cast<int>((group.error >> 16) & 0xffffu);
    EXPECT(algo == Algo::kRing || culprit == 2);
    EXPECT_EQ(group.counters[0].value[static_cast<int>(Counter::kTwoShot)], uint64_t{0});
    EXPECT_EQ(group.counters[0].value[static_cast<int>(Counter::kRing)], uint64_t{0});
  }
}

/// The host's stop word ends a grid that would otherwise wait for a minute.
CHECK_CASE(cuda_stop_word_ends_the_grid) {
  EmulatedGroup group(3, 1, 256);
  const CollectiveCall call = all_reduce_call(Algo::kTwoShot, kPairs[0], ReduceOp::kSum, 100);
  Arrays arrays(3, call.count, 4, Layout{false, 0});
  const CudaJob job = make_job(group, call, arrays.arrays);
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    __atomic_store_n(&group.stop, 1u, __ATOMIC_RELEASE);
  });
  run_grid(job, find_kernel(call, 3), 0);
  stopper.join();
  EXPECT_EQ(static_cast<int>(group.error >> 56), static_cast<int>(ErrorCode::kAborted));
}

CHECK_CASE(cuda_plan_uses_all_channels) {
  // 64 KiB over 8 ranks and 16 channels: 512 bytes each, though a slot would hold more.
  const ChunkPlan plan = cuda_plan(16384, 8, 4, 65536, 16);
  EXPECT_EQ(plan.num_tiles(), uint64_t{1});
  EXPECT(plan.segment(0, 3, 0).count > 0);
  // Never more than a slot, and never packs cut in two.
  for (const size_t count : {size_t{1}, size_t{1000}, size_t{1} << 20, (size_t{1} << 24) + 3}) {
    const ChunkPlan any = cuda_plan(count, 3, 2, 4096, 7);
    EXPECT(any.segment_count * 2 <= 4096);
    EXPECT_EQ(any.segment_count % kChunkAlign, size_t{0});
  }
}

}  // namespace
}  // namespace dcomm
