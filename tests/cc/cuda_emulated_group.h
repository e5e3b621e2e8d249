// What _cuda.so does around its kernels, on emulated blocks; and the host executor beside it, to compare bits.
#pragma once

#include "cuda_emulation.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/dtype.h"
#include "check.h"
#include "launch/cuda_bodies.cuh"
#include "launch/host_launch.h"

namespace dcomm::checks::cuda {

inline constexpr uint64_t kTimeoutNs = 60'000'000'000;

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
      : EmulatedGroup(world_size_, num_channels_, slot_bytes_, 0, world_size_, {}) {
    const size_t window_bytes = cuda_window_layout(world_size, num_channels, slot_bytes).window_bytes();
    for (int r = 0; r < world_size; ++r) {
      storage.push_back(std::make_unique<Zeroed>(window_bytes));
      windows.push_back(storage.back()->memory);
    }
  }
  /// The ranks of one process, in windows that it has mapped.
  EmulatedGroup(int world_size_, int num_channels_, size_t slot_bytes_, int first_rank_, int num_local_ranks_,
                std::vector<std::byte*> windows_)
      : world_size(world_size_),
        first_rank(first_rank_),
        num_local_ranks(num_local_ranks_),
        num_channels(num_channels_),
        slot_bytes(slot_bytes_),
        counters(static_cast<size_t>(num_local_ranks_ * num_channels_) * cuda_counter_words(world_size_)),
        windows(std::move(windows_)) {}
  const int world_size;
  const int first_rank;
  const int num_local_ranks;
  const int num_channels;
  const size_t slot_bytes;
  std::vector<uint64_t> counters;
  std::vector<std::byte*> windows;
  std::vector<std::unique_ptr<Zeroed>> storage;
  uint32_t stop = 0;
  uint64_t error = 0;

  uint64_t& counter(int rank, int channel, Counter which, int peer = 0) {
    const auto row = static_cast<size_t>(rank * num_channels + channel);
    return counters[row * cuda_counter_words(world_size) + cuda_counter_index(which, peer, world_size)];
  }
};

/// What a launch is given.
struct Launch {
  void (*body)(CudaBlockExec&, const CudaJob&, const CudaArrays&);
  CudaJob job;
  int num_channels;  // of the grid
  int num_local_ranks;
  bool packets;
};

template <class Body>
void take_if(const CudaKernelKey& key, int num_ranks, Launch& launch) {
  if (key == Body::kKey && (Body::kNumRanks == num_ranks || (Body::kNumRanks == 0 && launch.body == nullptr))) {
    launch.body = &Body::run;
  }
}
template <template <class, class, int> class Body, class User, class Wire>
void take_by_ranks(const CudaKernelKey& key, int num_ranks, Launch& launch) {
  take_if<Body<User, Wire, 2>>(key, num_ranks, launch);
  take_if<Body<User, Wire, 4>>(key, num_ranks, launch);
  take_if<Body<User, Wire, 8>>(key, num_ranks, launch);
  take_if<Body<User, Wire, 0>>(key, num_ranks, launch);
}
template <class User, class Wire>
void take_all_reduce(const CudaKernelKey& key, int num_ranks, Launch& launch) {
  take_by_ranks<TwoShotBody, User, Wire>(key, num_ranks, launch);
  take_by_ranks<PacketsBody, User, Wire>(key, num_ranks, launch);
  take_if<RingBody<User, Wire>>(key, num_ranks, launch);
  take_if<TreeBody<User, Wire>>(key, num_ranks, launch);
  take_if<OneShotBody<User, Wire>>(key, num_ranks, launch);
}
template <class Type>
void take_direct(const CudaKernelKey& key, int num_ranks, Launch& launch) {
  take_if<DirectBody<Type, 2>>(key, num_ranks, launch);
  take_if<DirectBody<Type, 8>>(key, num_ranks, launch);
  take_if<DirectBody<Type, 0>>(key, num_ranks, launch);
  take_if<PulledBody<Type, 2>>(key, num_ranks, launch);
  take_if<PulledBody<Type, 0>>(key, num_ranks, launch);
}
template <class Type>
void take_one_result(const CudaKernelKey& key, int num_ranks, Launch& launch) {
  take_if<ReduceScatterBody<Type, 2>>(key, num_ranks, launch);
  take_if<ReduceScatterBody<Type, 4>>(key, num_ranks, launch);
  take_if<ReduceScatterBody<Type, 8>>(key, num_ranks, launch);
  take_if<ReduceScatterBody<Type, 0>>(key, num_ranks, launch);
  take_if<ReduceBody<Type>>(key, num_ranks, launch);
}
template <class Element>
void take_integers(const CudaKernelKey& key, int num_ranks, Launch& launch) {
  take_if<IntegerTwoShotBody<Element>>(key, num_ranks, launch);
  take_if<IntegerRingBody<Element>>(key, num_ranks, launch);
  take_if<IntegerReduceScatterBody<Element>>(key, num_ranks, launch);
  take_if<IntegerReduceBody<Element>>(key, num_ranks, launch);
}

/// As _cuda.so finds it; no body where there is no kernel. arrays: by local rank; algo kDirect: of all ranks.
inline Launch find_launch(EmulatedGroup& group, const CollectiveCall& call, const std::vector<CudaArrays>& arrays,
                          bool pulled = false) {
  const CudaRequest request{call.collective, call.algo, call.dtype, call.wire, call.count, pulled};
  const CudaShape shape{group.world_size, group.num_channels, group.slot_bytes, kCudaPacketDataBytes};
  const CudaChoice choice = choose_cuda(request, shape);
  Launch launch{nullptr, {}, choice.num_channels, group.num_local_ranks, is_in_packets(choice.key)};
  take_all_reduce<CudaF32, CudaF32>(choice.key, group.world_size, launch);
  take_all_reduce<CudaF32, CudaBF16>(choice.key, group.world_size, launch);
  take_all_reduce<CudaF32, CudaF16>(choice.key, group.world_size, launch);
  take_all_reduce<CudaBF16, CudaBF16>(choice.key, group.world_size, launch);
  take_all_reduce<CudaF16, CudaF16>(choice.key, group.world_size, launch);
  take_if<TwoShotBlocksBody>(choice.key, group.world_size, launch);
  take_direct<CudaF32>(choice.key, group.world_size, launch);
  take_direct<CudaBF16>(choice.key, group.world_size, launch);
  take_direct<CudaF16>(choice.key, group.world_size, launch);
  take_one_result<CudaF32>(choice.key, group.world_size, launch);
  take_one_result<CudaBF16>(choice.key, group.world_size, launch);
  take_one_result<CudaF16>(choice.key, group.world_size, launch);
  take_integers<CudaI8>(choice.key, group.world_size, launch);
  take_integers<CudaI32>(choice.key, group.world_size, launch);
  take_integers<CudaI64>(choice.key, group.world_size, launch);
  take_integers<CudaBool>(choice.key, group.world_size, launch);
  take_if<BroadcastBody>(choice.key, group.world_size, launch);
  take_if<AllGatherBody>(choice.key, group.world_size, launch);
  take_if<GatherBody>(choice.key, group.world_size, launch);
  take_if<ScatterBody>(choice.key, group.world_size, launch);
  take_if<AllToAllBody>(choice.key, group.world_size, launch);
  take_if<SendBody>(choice.key, group.world_size, launch);
  take_if<BarrierBody>(choice.key, group.world_size, launch);
  CudaJob& job = launch.job;
  job.first_rank = group.first_rank;
  job.world_size = group.world_size;
  job.num_channels = group.num_channels;
  job.root = call.root;
  job.tag = call.tag;
  job.dtype = call.dtype;
  job.wire = call.wire;
  job.divisor = call.op == ReduceOp::kAvg ? static_cast<float>(group.world_size) : 1.0f;
  job.slot_bytes = group.slot_bytes;
  job.timeout_ns = kTimeoutNs;
  job.windows = group.windows.data();
  job.counters = group.counters.data();
  job.abort = &group.stop;
  job.error = &group.error;
  job.plan = choice.plan;
  std::copy(arrays.begin(), arrays.end(), job.arrays);
  return launch;
}

inline Launch make_launch(EmulatedGroup& group, const CollectiveCall& call, const std::vector<CudaArrays>& arrays,
                          bool pulled = false) {
  const Launch launch = find_launch(group, call, arrays, pulled);
  EXPECT_MSG(launch.body != nullptr, std::string("no kernel for ") + collective_name(call.collective));
  return launch;
}

/// One grid: local ranks x channels blocks; local rank `absent` (if >= 0) stays away.
inline void run_grid(const Launch& launch, int absent = -1) {
  const CudaJob& job = launch.job;
  std::vector<std::thread> threads;
  std::vector<std::unique_ptr<gpu::Block>> blocks;
  std::vector<std::vector<std::byte*>> shared;
  const auto num_blocks = static_cast<size_t>(launch.num_local_ranks * launch.num_channels);
  shared.resize(num_blocks, std::vector<std::byte*>(static_cast<size_t>(job.world_size)));
  for (size_t b = 0; b < num_blocks; ++b) blocks.push_back(std::make_unique<gpu::Block>());
  for (size_t b = 0; b < num_blocks; ++b) {
    const int rank = static_cast<int>(b) / launch.num_channels;
    const int channel = static_cast<int>(b) % launch.num_channels;
    if (rank == absent) continue;
    for (int lane = 0; lane < gpu::kBlockThreads; ++lane) {
      threads.emplace_back([&, b, rank, channel, lane] {
        gpu::current_block = blocks[b].get();
        gpu::current_thread = lane;
        gpu::current_vote = 0;
        CudaBlockExec exec(job, rank, channel, shared[b].data());
        launch.body(exec, job, job.arrays[rank]);
        exec.end_operation(launch.packets);
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

inline void run_host(int world_size, const CollectiveCall& call, const std::vector<CudaArrays>& arrays) {
  const WindowLayout layout{
      Placement{PlacementKind::kBounce, world_size, 2}, 1, {1024, 1024, 1024, 1024, 1024, 0}, kPacketGrain};
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

/// Deterministic values of every kind: ordinary, denormal, huge, infinite, NaN; of integers and bool, any bytes.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state_ >> 32);
  }
  void fill(DType dtype, std::byte* to, size_t count) {
    if (!is_floating(dtype)) {
      for (size_t i = 0; i < count * dtype_bytes(dtype); ++i) to[i] = static_cast<std::byte>(next());
      return;
    }
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

/// How many elements one rank's array has: of a message, a block, or all blocks.
inline size_t in_count(const CollectiveCall& call, int world_size) {
  const bool all = call.collective == Collective::kReduceScatter || call.collective == Collective::kScatter ||
                   call.collective == Collective::kAllToAll;
  return all ? call.count * static_cast<size_t>(world_size) : call.count;
}
inline size_t out_count(const CollectiveCall& call, int world_size) {
  const bool all = call.collective == Collective::kAllGather || call.collective == Collective::kGather ||
                   call.collective == Collective::kAllToAll;
  return all ? call.count * static_cast<size_t>(world_size) : call.count;
}

/// Of what an array shall be like when the call is over; nothing of it may be written otherwise.
inline constexpr std::byte kUntouched{0x5a};

/// One array, with a guard on both sides.
struct Array {
  Array(size_t num_bytes_, size_t shift_bytes)
      : storage(2 * kGuard + num_bytes_ + shift_bytes),
        memory(storage.memory + kGuard + shift_bytes),
        num_bytes(num_bytes_) {
    std::fill(memory - kGuard, memory + num_bytes + kGuard, kUntouched);
  }
  bool guards_intact() const {
    const auto is_untouched = [](std::byte b) { return b == kUntouched; };
    return std::all_of(memory - kGuard, memory, is_untouched) &&
           std::all_of(memory + num_bytes, memory + num_bytes + kGuard, is_untouched);
  }
  static constexpr size_t kGuard = 64;
  Zeroed storage;
  std::byte* const memory;
  const size_t num_bytes;
};

/// The arrays of all ranks. in_place: in is out, or a part of it (all_gather, broadcast: always).
struct Arrays {
  Arrays(const CollectiveCall& call, int world_size, const Layout& layout) {
    const size_t element_bytes = dtype_bytes(call.dtype);
    for (int r = 0; r < world_size; ++r) {
      outs.push_back(
          std::make_unique<Array>(out_count(call, world_size) * element_bytes, layout.shift * element_bytes));
      const size_t in_bytes = in_count(call, world_size) * element_bytes;
      std::byte* in = outs.back()->memory;
      if (call.collective == Collective::kAllGather) in += static_cast<size_t>(r) * in_bytes;
      const bool can_share = call.collective == Collective::kAllReduce || call.collective == Collective::kReduce ||
                             call.collective == Collective::kAllGather;
      if (call.collective != Collective::kBroadcast && !(layout.in_place && can_share)) {
        ins.push_back(std::make_unique<Array>(in_bytes, layout.shift * element_bytes));
        in = ins.back()->memory;
      }
      Numbers(call.count * 131 + static_cast<size_t>(r)).fill(call.dtype, in, in_count(call, world_size));
      arrays.push_back({in, outs.back()->memory});
    }
  }
  bool guards_intact() const {
    const auto intact = [](const std::unique_ptr<Array>& array) { return array->guards_intact(); };
    return std::all_of(ins.begin(), ins.end(), intact) && std::all_of(outs.begin(), outs.end(), intact);
  }
  std::vector<std::unique_ptr<Array>> ins, outs;
  std::vector<CudaArrays> arrays;
};

/// Every rank's result, or what it must leave alone, has the host's bits.
inline void compare(EmulatedGroup& group, const CollectiveCall& call, const Layout& layout) {
  const int n = group.world_size;
  const Arrays device(call, n, layout);
  const Arrays host(call, n, layout);
  run_host(n, call, host.arrays);
  run_grid(make_launch(group, call, device.arrays));
  const std::string what = std::string(collective_name(call.collective)) + " " + algo_name(call.algo) + " " +
                           dtype_name(call.dtype) + " on " + dtype_name(call.wire) + ", " + reduce_op_name(call.op) +
                           " of " + std::to_string(call.count) + ", " + std::to_string(n) + " ranks, root " +
                           std::to_string(call.root);
  EXPECT_MSG(group.error == 0, what + ": failed");
  EXPECT_MSG(device.guards_intact(), what + ": wrote beyond an array");
  for (size_t r = 0; r < static_cast<size_t>(n); ++r) {
    EXPECT_MSG(std::memcmp(device.outs[r]->memory, host.outs[r]->memory, host.outs[r]->num_bytes) == 0,
               what + ": rank " + std::to_string(r) + " differs from the host's");
  }
}

inline constexpr DType kPairs[][2] = {{DType::kF32, DType::kF32},
                                      {DType::kF32, DType::kBF16},
                                      {DType::kF32, DType::kF16},
                                      {DType::kBF16, DType::kBF16},
                                      {DType::kF16, DType::kF16}};

inline constexpr Layout kLayouts[] = {{false, 0}, {true, 0}, {false, 1}, {true, 3}};

inline CollectiveCall all_reduce_call(Algo algo, const DType (&pair)[2], ReduceOp op, size_t count) {
  CollectiveCall call;
  call.collective = Collective::kAllReduce;
  call.algo = algo;
  call.dtype = pair[0];
  call.wire = pair[1];
  call.op = op;
  call.count = count;
  return call;
}

}  // namespace dcomm::checks::cuda
