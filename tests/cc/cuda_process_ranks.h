// Ranks of different processes on emulated blocks: windows in common, everything else each rank's own, and each
// launches its own grid at its own time.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "cuda_emulated_group.h"

namespace dcomm::checks::cuda {

/// What _cuda.so keeps for one process; the windows are the group's.
struct ProcessRanks {
  ProcessRanks(int world_size, int num_channels, size_t slot_bytes) : shared(world_size, num_channels, slot_bytes) {
    for (int r = 0; r < world_size; ++r) {
      members.push_back(std::make_unique<Member>());
      members.back()->counters.resize(static_cast<size_t>(num_channels) * cuda_counter_words(world_size));
    }
  }

  struct Member {
    std::vector<uint64_t> counters;
    uint64_t error = 0;
    uint32_t stop = 0;
  };

  /// Rank `rank`'s grid. Any thread; returns when it has ended.
  void launch(int rank, const CollectiveCall& call, const CudaArrays& arrays, uint64_t fingerprint,
              uint64_t timeout_ns = kTimeoutNs, int peer = 0) {
    run(rank, make_launch(shared, call, {arrays}), fingerprint, timeout_ns, peer);
  }
  /// An all-reduce of arrays that all ranks reach. pulled: but not the results.
  void launch_direct(int rank, const CollectiveCall& call, const std::vector<CudaArrays>& all, bool pulled,
                     uint64_t fingerprint, uint64_t timeout_ns = kTimeoutNs) {
    run(rank, make_launch(shared, call, all, pulled), fingerprint, timeout_ns);
  }

  void run(int rank, Launch launch, uint64_t fingerprint, uint64_t timeout_ns, int peer = 0) {
    Member& own = *members[static_cast<size_t>(rank)];
    launch.num_local_ranks = 1;
    launch.job.first_rank = rank;
    launch.job.peer = peer;
    launch.job.counters = own.counters.data();
    launch.job.abort = &own.stop;
    launch.job.error = &own.error;
    launch.job.fingerprint = fingerprint;
    launch.job.timeout_ns = timeout_ns;
    run_grid(launch);
  }

  /// Rank `rank`'s side of a message: of src, which sends `data`, or of dst, which fills it.
  void launch_message(int rank, int src, int dst, std::vector<std::byte>& data, int tag = 0, DType dtype = DType::kU8,
                      uint64_t timeout_ns = kTimeoutNs) {
    CollectiveCall call;
    call.collective = Collective::kSend;
    call.dtype = call.wire = dtype;
    call.count = data.size() / dtype_bytes(dtype);
    call.root = src;
    call.tag = tag;
    const CudaArrays arrays = rank == src ? CudaArrays{data.data(), nullptr} : CudaArrays{nullptr, data.data()};
    launch(rank, call, arrays, 0, timeout_ns, dst);
  }

  uint64_t error(int rank) const { return members[static_cast<size_t>(rank)]->error; }
  int error_code(int rank) const { return static_cast<int>(error(rank) >> 56); }
  int world_size() const { return shared.world_size; }

  EmulatedGroup shared;  // of which only the windows are used
  std::vector<std::unique_ptr<Member>> members;
};

/// f(rank) in a thread for each rank.
inline void for_each_rank(int world_size, const std::function<void(int)>& f) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) threads.emplace_back(f, rank);
  for (auto& thread : threads) thread.join();
}

inline void sleep_a_little(Numbers& random) {
  if (random.next() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random.next() % 2000));
}

/// All ranks make `calls` one after the other, each at its own pace; then every result has the host's bits.
inline void compare_sequence(ProcessRanks& ranks, const std::vector<CollectiveCall>& calls, uint64_t seed,
                             uint64_t timeout_ns = kTimeoutNs) {
  const int n = ranks.world_size();
  std::vector<std::unique_ptr<Arrays>> device;
  for (size_t i = 0; i < calls.size(); ++i) device.push_back(std::make_unique<Arrays>(calls[i], n, kLayouts[i % 4]));
  for_each_rank(n, [&](int rank) {
    Numbers random(seed * 100 + static_cast<uint64_t>(rank));
    for (size_t i = 0; i < calls.size(); ++i) {
      sleep_a_little(random);
      const uint64_t fingerprint = i % 2 == 0 ? 77 : 1000 + i;
      ranks.launch(rank, calls[i], device[i]->arrays[static_cast<size_t>(rank)], fingerprint, timeout_ns);
    }
  });
  for (int rank = 0; rank < n; ++rank) EXPECT_EQ(ranks.error(rank), uint64_t{0});
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string what = "call " + std::to_string(i) + ", " + collective_name(calls[i].collective) + " of " +
                             std::to_string(calls[i].count) + ", " + std::to_string(n) + " ranks";
    const Arrays host(calls[i], n, kLayouts[i % 4]);
    run_host(n, calls[i], host.arrays);
    EXPECT_MSG(device[i]->guards_intact(), what + ": wrote beyond an array");
    for (size_t r = 0; r < static_cast<size_t>(n); ++r) {
      EXPECT_MSG(std::memcmp(device[i]->outs[r]->memory, host.outs[r]->memory, host.outs[r]->num_bytes) == 0,
                 what + ": rank " + std::to_string(r) + " differs from the host's");
    }
  }
}

}  // namespace dcomm::checks::cuda
