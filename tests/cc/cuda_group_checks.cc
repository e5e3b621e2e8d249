// Ranks that are threads meet and one launches for all: against a C table that only notes what it is told.
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda_fake_table.h"
#include "launch/cuda_group.h"
#include "launch/cuda_loader.h"

namespace dcomm::checks {
namespace {

CHECK_CASE(cuda_group_launches_once_for_all) {
  UseFake use;
  {
    CudaThreadGroup group(4, CudaGroupOptions{7, 0, 8192}, &kTable);
    for (int turn = 0; turn < 50; ++turn) {
      for (const Result& result : run_ranks(group, good_calls(4))) EXPECT_EQ(result.message, std::string());
    }
    EXPECT_EQ(use.state.num_created.load(), 1);
    EXPECT_EQ(use.state.num_launched.load(), 50);
    EXPECT_EQ(use.state.options.num_ranks, 4);
    EXPECT_EQ(use.state.options.num_channels, 7);
    EXPECT_EQ(use.state.options.slot_bytes, uint64_t{8192});
    EXPECT_EQ(use.state.call.count, uint64_t{1000});
    EXPECT_EQ(use.state.call.wire, static_cast<int32_t>(DType::kF16));
    EXPECT_EQ(use.state.call.timeout_ns, uint64_t{21'000'000'000});
    for (int r = 0; r < 4; ++r) {
      EXPECT(use.state.in[static_cast<size_t>(r)] == good_call(r).call.in);
      EXPECT(use.state.out[static_cast<size_t>(r)] == good_call(r).call.out);
      EXPECT(use.state.streams[static_cast<size_t>(r)] == good_call(r).stream);
    }
    EXPECT_EQ(use.state.num_destroyed.load(), 0);
  }
  EXPECT_EQ(use.state.num_destroyed.load(), 1);
}

CHECK_CASE(cuda_group_of_one) {
  UseFake use;
  CudaThreadGroup group(1, {}, &kTable);
  group.run(0, good_call(0));
  EXPECT_EQ(use.state.num_launched.load(), 1);
}

/// What the C table is told of a collective other than all_reduce; another root is a mismatch.
CHECK_CASE(cuda_group_runs_any_collective) {
  UseFake use;
  CudaThreadGroup group(3, {}, &kTable);
  auto calls = good_calls(3);
  for (auto& call : calls) {
    call.call.collective = Collective::kScatter;
    call.call.root = 2;
  }
  for (const Result& result : run_ranks(group, calls)) EXPECT_EQ(result.message, std::string());
  EXPECT_EQ(use.state.call.collective, static_cast<int32_t>(Collective::kScatter));
  EXPECT_EQ(use.state.call.root, 2);
  calls[1].call.root = 0;
  for (const Result& result : run_ranks(group, calls)) {
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kMismatch));
    EXPECT_MSG(contains(result.message, "rank 2) on") && contains(result.message, "rank 0) on"), result.message);
  }
  EXPECT_EQ(use.state.num_launched.load(), 1);
}

CHECK_CASE(cuda_group_mismatch_raises_on_all) {
  UseFake use;
  CudaThreadGroup group(3, {}, &kTable);
  const std::function<void(CudaRankCall&)> changes[] = {
      [](CudaRankCall& call) { call.call.count = 999; },
      [](CudaRankCall& call) { call.call.dtype = DType::kBF16; },
      [](CudaRankCall& call) { call.call.wire = DType::kBF16; },
      [](CudaRankCall& call) { call.call.op = ReduceOp::kAvg; },
      [](CudaRankCall& call) { call.call.algo = Algo::kTwoShot; },
      [](CudaRankCall& call) { call.device = 1; },
      [](CudaRankCall& call) { call.call.collective = Collective::kReduceScatter; },
  };
  const char* const both_sides[][2] = {
      {"1000 x", "999 x"},  {"float32", "bfloat16"}, {"float16 wire", "bfloat16 wire"}, {"sum", "avg"},
      {"ring", "two_shot"}, {"cuda:0", "cuda:1"},    {"all_reduce", "reduce_scatter"}};
  for (size_t i = 0; i < std::size(changes); ++i) {
    auto calls = good_calls(3);
    changes[i](calls[2]);
    for (const Result& result : run_ranks(group, calls)) {
      EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kMismatch));
      EXPECT_MSG(contains(result.message, both_sides[i][0]) && contains(result.message, both_sides[i][1]) &&
                     contains(result.message, "rank 2"),
                 result.message);
    }
  }
  EXPECT_EQ(use.state.num_launched.load(), 0);
  for (const Result& result : run_ranks(group, good_calls(3))) EXPECT_EQ(result.message, std::string());
}

CHECK_CASE(cuda_group_deadline_names_the_missing) {
  UseFake use;
  CudaThreadGroup group(3, {}, &kTable);
  const auto results = run_ranks(group, {good_call(0, kShortNs)});
  EXPECT_EQ(static_cast<int>(results[0].code), static_cast<int>(ErrorCode::kTimeout));
  EXPECT_MSG(contains(results[0].message, "ranks 1, 2"), results[0].message);
  const Result late = attempt([&] { group.run(1, good_call(1)); });  // at once, not after its own deadline
  EXPECT_EQ(static_cast<int>(late.code), static_cast<int>(ErrorCode::kTimeout));
  EXPECT_EQ(use.state.num_launched.load(), 0);
}

CHECK_CASE(cuda_group_deadline_of_one_ends_all) {
  UseFake use;
  CudaThreadGroup group(3, {}, &kTable);
  const auto results = run_ranks(group, {good_call(0), good_call(1, kShortNs)});
  for (const Result& result : results) {
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kTimeout));
    EXPECT_MSG(contains(result.message, "rank 2,"), result.message);
  }
}

CHECK_CASE(cuda_group_reports_what_kernels_report) {
  UseFake use;
  CudaThreadGroup group(2, {}, &kTable);
  run_ranks(group, good_calls(2));
  use.state.failure = {static_cast<int32_t>(ErrorCode::kTimeout), 2, 1, 0, 17};
  for (const Result& result : run_ranks(group, good_calls(2))) {
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kTimeout));
    EXPECT_MSG(contains(result.message, "rank 1 gave up") && contains(result.message, "rank 0"), result.message);
  }
  EXPECT_EQ(use.state.num_launched.load(), 1);
  const Result checked = attempt([&] { group.synchronize_check(0, kLongNs); });
  EXPECT_EQ(static_cast<int>(checked.code), static_cast<int>(ErrorCode::kTimeout));
}

CHECK_CASE(cuda_group_synchronize_check) {
  UseFake use;
  CudaThreadGroup group(1, {}, &kTable);
  group.synchronize_check(0, kLongNs);  // nothing to wait for
  group.run(0, good_call(0));
  group.synchronize_check(0, kLongNs);
  use.state.synchronize_status = kDcommCudaTimeout;
  const Result slow = attempt([&] { group.synchronize_check(0, kLongNs); });
  EXPECT_EQ(static_cast<int>(slow.code), static_cast<int>(ErrorCode::kTimeout));
}

CHECK_CASE(cuda_group_refusals) {
  UseFake use;
  CudaThreadGroup group(2, {}, &kTable);
  use.state.launch_status = kDcommCudaInvalid;  // found before anything was enqueued: stays usable
  for (const Result& result : run_ranks(group, good_calls(2))) {
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kInvalidArgument));
  }
  use.state.launch_status = kDcommCudaOk;
  for (const Result& result : run_ranks(group, good_calls(2))) EXPECT_EQ(result.message, std::string());
  auto calls = good_calls(2);
  for (auto& call : calls) {
    call.call.collective = Collective::kAllToAll;
    call.call.lengths = std::make_shared<BlockLengths>();
  }
  for (const Result& result : run_ranks(group, calls)) EXPECT_MSG(contains(result.message, "lengths"), result.message);
  calls = good_calls(2);
  for (auto& call : calls) call.device = 1;
  for (const Result& result : run_ranks(group, calls)) EXPECT_MSG(contains(result.message, "cuda:1"), result.message);
  use.state.launch_status = kDcommCudaFailed;
  for (int turn = 0; turn < 2; ++turn) {
    for (const Result& result : run_ranks(group, good_calls(2))) {
      EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kCuda));
    }
  }
}

CHECK_CASE(cuda_group_too_many_ranks) {
  UseFake use;
  use.state.create_status = kDcommCudaTooLarge;
  CudaThreadGroup group(2, {}, &kTable);
  for (const Result& result : run_ranks(group, good_calls(2))) {
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kCuda));
  }
  EXPECT_EQ(use.state.num_launched.load(), 0);
}

CHECK_CASE(cuda_group_stop_and_leave) {
  UseFake use;
  {
    CudaThreadGroup group(2, {}, &kTable);
    run_ranks(group, good_calls(2));
    std::thread stopper([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      group.stop("rank 1 called abort()");
    });
    const auto results = run_ranks(group, {good_call(0)});
    stopper.join();
    EXPECT_EQ(static_cast<int>(results[0].code), static_cast<int>(ErrorCode::kAborted));
    EXPECT_EQ(use.state.num_stopped.load(), 1);
  }
  CudaThreadGroup group(2, {}, &kTable);
  std::thread leaver([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    group.leave(1);
  });
  auto results = run_ranks(group, {good_call(0)});
  leaver.join();
  EXPECT_EQ(static_cast<int>(results[0].code), static_cast<int>(ErrorCode::kPeerLost));
  CudaThreadGroup empty(2, {}, &kTable);
  empty.leave(1);
  results = run_ranks(empty, {good_call(0)});  // needs no deadline
  EXPECT_EQ(static_cast<int>(results[0].code), static_cast<int>(ErrorCode::kPeerLost));
  EXPECT_MSG(contains(results[0].message, "rank 1"), results[0].message);
}

CHECK_CASE(cuda_group_interrupt) {
  UseFake use;
  CudaThreadGroup group(3, {}, &kTable);
  std::vector<CudaRankCall> calls = {good_call(0), good_call(1)};
  calls[0].interrupted = [](void*) { return true; };
  const auto results = run_ranks(group, calls);
  EXPECT_EQ(static_cast<int>(results[0].code), static_cast<int>(ErrorCode::kInterrupted));
  EXPECT_EQ(static_cast<int>(results[1].code), static_cast<int>(ErrorCode::kAborted));
}

CHECK_CASE(cuda_group_two_threads_as_one_rank) {
  UseFake use;
  CudaThreadGroup group(2, {}, &kTable);
  Result first;
  std::thread thread([&] { first = attempt([&] { group.run(0, good_call(0)); }); });
  Result second;
  do {
    second = attempt([&] { group.run(0, good_call(0, kShortNs)); });
    if (second.code == ErrorCode::kTimeout) break;  // this one came first; the other got the error
  } while (second.code == ErrorCode::kOk);
  group.leave(1);
  thread.join();
  const bool seen = second.code == ErrorCode::kConcurrentUse || first.code == ErrorCode::kConcurrentUse;
  EXPECT(seen);
}

CHECK_CASE(cuda_group_options_from_environment) {
  setenv("DCOMM_CUDA_CHANNELS", "12", 1);
  setenv("DCOMM_CUDA_SLOT_BYTES", "65536", 1);
  setenv("DCOMM_MAX_CTAS", "16", 1);
  const CudaGroupOptions options = CudaGroupOptions::from_environment();
  setenv("DCOMM_CUDA_CHANNELS", "many", 1);
  const Result bad = attempt([] { CudaGroupOptions::from_environment(); });
  unsetenv("DCOMM_CUDA_CHANNELS");
  unsetenv("DCOMM_CUDA_SLOT_BYTES");
  unsetenv("DCOMM_MAX_CTAS");
  EXPECT_EQ(options.num_channels, 12);
  EXPECT_EQ(options.max_channels, 16);
  EXPECT_EQ(options.slot_bytes, uint64_t{65536});
  EXPECT_EQ(static_cast<int>(bad.code), static_cast<int>(ErrorCode::kInvalidArgument));
  EXPECT_MSG(contains(bad.message, "DCOMM_CUDA_CHANNELS='many'"), bad.message);
}

/// The checks are built without a CUDA part beside them.
CHECK_CASE(cuda_loader_without_cuda_part) {
  for (int turn = 0; turn < 2; ++turn) {
    const Result result = attempt([] { cuda_device_count(); });
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kCuda));
    EXPECT_MSG(contains(result.message, "DCOMM_CUDA=ON"), result.message);
  }
  CudaThreadGroup group(1);
  const Result result = attempt([&] { group.run(0, good_call(0)); });
  EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kCuda));
}

}  // namespace
}  // namespace dcomm::checks
