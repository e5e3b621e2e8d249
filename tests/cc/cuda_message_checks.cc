// Messages between two ranks of a process, and a thread that plays all ranks: who meets whom, and who never will.
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda_fake_table.h"
#include "launch/cuda_group.h"

namespace dcomm::checks {
namespace {

CudaRankCall message(Collective kind, int rank, int peer, size_t count = 10, int tag = 0,
                     int64_t timeout_ns = kLongNs) {
  CudaRankCall call = good_call(rank, timeout_ns);
  call.call.collective = kind;
  call.call.algo = Algo::kFlat;
  call.call.wire = call.call.dtype;
  call.call.count = count;
  call.call.root = peer;
  call.call.tag = tag;
  return call;
}
CudaRankCall send_to(int rank, int peer, size_t count = 10, int tag = 0) {
  return message(Collective::kSend, rank, peer, count, tag);
}
CudaRankCall recv_from(int rank, int peer, size_t count = 10, int tag = 0) {
  return message(Collective::kRecv, rank, peer, count, tag);
}

struct Step {
  int rank;
  CudaRankCall call;
};

/// Each step from a thread of its own, at once.
std::vector<Result> run_steps(CudaThreadGroup& group, const std::vector<Step>& steps) {
  std::vector<Result> results(steps.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < steps.size(); ++i) {
    threads.emplace_back([&, i] { results[i] = attempt([&] { group.run(steps[i].rank, steps[i].call); }); });
  }
  for (auto& thread : threads) thread.join();
  return results;
}

void expect_code(const std::vector<Result>& results, ErrorCode code) {
  for (const Result& result : results) EXPECT_MSG(result.code == code, result.message);
}

CHECK_CASE(cuda_message_of_two_ranks_alone) {
  UseFake use;
  CudaThreadGroup group(4, {}, &kTable);
  for (int turn = 0; turn < 20; ++turn) {
    expect_code(run_steps(group, {{3, send_to(3, 1)}, {1, recv_from(1, 3)}}), ErrorCode::kOk);
  }
  EXPECT_EQ(use.state.num_launched.load(), 20);
  EXPECT_EQ(use.state.call.collective, static_cast<int32_t>(Collective::kSend));
  EXPECT_EQ(use.state.call.root, 3);
  EXPECT_EQ(use.state.call.peer, 1);
  EXPECT_EQ(use.state.call.count, uint64_t{10});
  EXPECT(use.state.in[3] == good_call(3).call.in && use.state.out[1] == good_call(1).call.out);
  EXPECT(use.state.in[0] == nullptr && use.state.streams[2] == nullptr);
  EXPECT(use.state.streams[3] == good_call(3).stream && use.state.streams[1] == good_call(1).stream);
  // Two pairs at the same time, then all ranks.
  expect_code(run_steps(group, {{0, send_to(0, 1)}, {1, recv_from(1, 0)}, {2, recv_from(2, 3)}, {3, send_to(3, 2)}}),
              ErrorCode::kOk);
  expect_code(run_ranks(group, good_calls(4)), ErrorCode::kOk);
  EXPECT_EQ(use.state.num_launched.load(), 23);
}

CHECK_CASE(cuda_message_of_another_length_breaks_the_group) {
  UseFake use;
  for (const bool other_dtype : {false, true}) {
    CudaThreadGroup group(3, {}, &kTable);
    CudaRankCall recv = recv_from(1, 0, other_dtype ? 10 : 11);
    if (other_dtype) recv.call.dtype = recv.call.wire = DType::kI32;
    for (const Result& result : run_steps(group, {{0, send_to(0, 1)}, {1, recv}})) {
      EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kMismatch));
      EXPECT_MSG(contains(result.message, "send(10 x float32) to rank 1") &&
                     contains(result.message, other_dtype ? "recv(10 x int32) from rank 0" : "recv(11 x float32)"),
                 result.message);
    }
    expect_code({attempt([&] { group.run(2, good_call(2)); })}, ErrorCode::kMismatch);
  }
  EXPECT_EQ(use.state.num_launched.load(), 0);
}

/// At once, not after a deadline.
CHECK_CASE(cuda_message_dead_ends_are_seen) {
  UseFake use;
  const std::vector<std::vector<Step>> dead_ends = {
      {{0, send_to(0, 1)}, {1, send_to(1, 0)}},
      {{0, recv_from(0, 1)}, {1, recv_from(1, 0)}},
      {{0, send_to(0, 1, 10, 5)}, {1, recv_from(1, 0, 10, 6)}},
      {{0, send_to(0, 1)}, {1, good_call(1)}},
  };
  for (const auto& steps : dead_ends) {
    CudaThreadGroup group(3, {}, &kTable);
    const auto start = std::chrono::steady_clock::now();
    const auto results = run_steps(group, steps);
    expect_code(results, ErrorCode::kMismatch);
    for (const Result& result : results) {
      EXPECT_MSG(contains(result.message, "rank 0 called") || contains(result.message, "rank 1 called"),
                 result.message);
    }
    EXPECT(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  }
  EXPECT_EQ(use.state.num_launched.load(), 0);
}

CHECK_CASE(cuda_message_deadline_and_lost_peer) {
  UseFake use;
  {
    CudaThreadGroup group(3, {}, &kTable);
    const Result late = attempt([&] { group.run(0, message(Collective::kRecv, 0, 2, 10, 0, kShortNs)); });
    EXPECT_EQ(static_cast<int>(late.code), static_cast<int>(ErrorCode::kTimeout));
    EXPECT_MSG(contains(late.message, "rank 2"), late.message);
  }
  CudaThreadGroup group(3, {}, &kTable);
  Result waiting;
  std::thread thread([&] { waiting = attempt([&] { group.run(0, send_to(0, 2)); }); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  group.leave(2);
  thread.join();
  expect_code({waiting, attempt([&] { group.run(1, recv_from(1, 2)); })}, ErrorCode::kPeerLost);
  EXPECT_MSG(contains(waiting.message, "rank 2 left"), waiting.message);
  // The two others still reach each other.
  expect_code(run_steps(group, {{0, send_to(0, 1)}, {1, recv_from(1, 0)}}), ErrorCode::kOk);
}

CHECK_CASE(cuda_collected_calls_are_launched_when_complete) {
  UseFake use;
  CudaThreadGroup group(3, {}, &kTable);
  const auto collect = [&](int rank, const CudaRankCall& call) { group.collect(rank, call); };
  for (int rank = 0; rank < 3; ++rank) {  // two operations of one rank before the next rank's
    collect(rank, good_call(rank));
    collect(rank, good_call(rank));
    EXPECT_EQ(use.state.num_launched.load(), rank == 2 ? 2 : 0);
  }
  group.end_collecting(true);
  // Each sends first; no message passes a collective.
  collect(0, send_to(0, 1));
  collect(1, send_to(1, 0));
  EXPECT_EQ(use.state.num_launched.load(), 2);
  collect(0, recv_from(0, 1));
  collect(1, recv_from(1, 0));
  EXPECT_EQ(use.state.num_launched.load(), 4);
  collect(0, good_call(0));
  collect(0, send_to(0, 1, 20));
  collect(1, recv_from(1, 0, 20));
  EXPECT_EQ(use.state.num_launched.load(), 4);
  const Result missing = attempt([&] { group.end_collecting(true); });
  EXPECT_EQ(static_cast<int>(missing.code), static_cast<int>(ErrorCode::kMismatch));
  EXPECT_MSG(contains(missing.message, "rank 0 called all_reduce") && contains(missing.message, "rank 1 called recv") &&
                 contains(missing.message, "rank 2 called nothing"),
             missing.message);
  // Neither does a recv behind one.
  collect(1, good_call(1));
  collect(1, recv_from(1, 0, 20));
  collect(0, send_to(0, 1, 20));
  EXPECT_EQ(use.state.num_launched.load(), 4);
  group.end_collecting(false);
  group.end_collecting(true);  // forgotten, and the group goes on
  for (int rank = 0; rank < 3; ++rank) collect(rank, good_call(rank));
  EXPECT_EQ(use.state.num_launched.load(), 5);
}

CHECK_CASE(cuda_collected_messages_keep_their_order) {
  UseFake use;
  CudaThreadGroup group(2, {}, &kTable);
  group.collect(0, send_to(0, 1, 1, 7));
  group.collect(0, send_to(0, 1, 2, 8));
  group.collect(0, send_to(0, 1, 3, 7));
  group.collect(1, recv_from(1, 0, 2, 8));
  EXPECT_EQ(use.state.call.count, uint64_t{2});
  group.collect(1, recv_from(1, 0, 1, 7));
  EXPECT_EQ(use.state.call.count, uint64_t{1});
  group.collect(1, recv_from(1, 0, 3, 7));
  EXPECT_EQ(use.state.call.count, uint64_t{3});
  EXPECT_EQ(use.state.num_launched.load(), 3);
  group.end_collecting(true);
}

CHECK_CASE(cuda_group_opens_on_request) {
  UseFake use;
  CudaThreadGroup group(2, {}, &kTable);
  EXPECT_EQ(group.device(), -1);
  group.open(1);
  group.open(1);
  EXPECT_EQ(group.device(), 1);
  EXPECT_EQ(use.state.num_created.load(), 1);
  const Result other = attempt([&] { group.open(0); });
  EXPECT_EQ(static_cast<int>(other.code), static_cast<int>(ErrorCode::kInvalidArgument));
  EXPECT_MSG(contains(other.message, "cuda:0") && contains(other.message, "cuda:1"), other.message);
}

}  // namespace
}  // namespace dcomm::checks
