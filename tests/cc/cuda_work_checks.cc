// Asynchronous operations of ranks that are threads: whose streams wait, events, and what was never launched.
#include <memory>
#include <thread>
#include <vector>

#include "cuda_fake_table.h"
#include "launch/cuda_call_rules.h"
#include "launch/cuda_work.h"

namespace dcomm::checks {
namespace {

CudaRankCall asynchronous(int rank) {
  CudaRankCall call = good_call(rank);
  call.work = std::make_shared<CudaWork>(kLongNs);
  return call;
}

CHECK_CASE(cuda_work_detaches_its_own_stream_only) {
  UseFake use;
  CudaThreadGroup group(3, {}, &kTable);
  const std::vector<CudaRankCall> calls = {good_call(0), asynchronous(1), good_call(2)};
  for (int rank = 0; rank < 3; ++rank) group.collect(rank, calls[static_cast<size_t>(rank)]);
  EXPECT(fake->detached == (std::vector<uint8_t>{0, 1, 0}));
  EXPECT(fake->call.end != nullptr);
  EXPECT_EQ(fake->num_events.load(), CudaEvents::kNumReady);
  EXPECT_EQ(static_cast<int>(calls[1].work->state()), static_cast<int>(kDcommCudaEventAhead));
  fake->event_state = kDcommCudaEventOver;
  EXPECT_EQ(static_cast<int>(calls[1].work->state()), static_cast<int>(kDcommCudaEventOver));
  void* const stream = reinterpret_cast<void*>(uintptr_t{0x77});
  calls[1].work->order_before(stream);
  EXPECT_EQ(fake->waits.size(), size_t{1});
  EXPECT(fake->waits[0].first == fake->call.end && fake->waits[0].second == stream);
}

CHECK_CASE(cuda_work_nobody_asks_for_an_event) {
  UseFake use;
  CudaThreadGroup group(2, {}, &kTable);
  for (int rank = 0; rank < 2; ++rank) group.collect(rank, good_call(rank));
  EXPECT(fake->call.end == nullptr);
}

CHECK_CASE(cuda_work_streams_that_wait) {
  void* streams[4] = {nullptr, nullptr, streams, nullptr};
  const uint8_t detached[4] = {1, 0, 0, 0};
  DcommCudaCall call{};
  call.collective = static_cast<int32_t>(Collective::kAllReduce);
  call.streams = streams;
  std::vector<bool> all;
  for (int rank = 4; rank < 8; ++rank) all.push_back(waits_for_end(call, rank, 4));
  EXPECT(all == (std::vector<bool>{true, false, true, false}));
  call.detached = detached;  // of a stream that two others want to wait
  std::vector<bool> some;
  for (int rank = 4; rank < 8; ++rank) some.push_back(waits_for_end(call, rank, 4));
  EXPECT(some == (std::vector<bool>{false, true, true, false}));
}

CHECK_CASE(cuda_work_streams_that_were_noted) {
  DcommCudaEvent* const event = reinterpret_cast<DcommCudaEvent*>(uintptr_t{0x55});
  void* streams[4] = {nullptr, nullptr, streams, nullptr};
  const DcommCudaEvent* ready[4] = {event, nullptr, event, nullptr};
  DcommCudaCall call{};
  call.collective = static_cast<int32_t>(Collective::kAllReduce);
  call.streams = streams;
  call.ready = ready;
  std::vector<bool> asked;
  for (int rank = 4; rank < 8; ++rank) asked.push_back(is_first_of_its_stream(call, rank, 4));
  EXPECT(asked == (std::vector<bool>{false, true, false, false}));  // rank 4's event is from before
  EXPECT(ready_event(call, 6, 4) == event && ready_event(call, 7, 4) == nullptr);
}

CHECK_CASE(cuda_work_posted_calls_meet) {
  UseFake use;
  CudaThreadGroup group(3, {}, &kTable);
  const std::vector<CudaRankCall> calls = {asynchronous(0), asynchronous(1), asynchronous(2)};
  for (const int rank : {2, 0}) {
    group.post(rank, calls[static_cast<size_t>(rank)]);
    EXPECT(!calls[static_cast<size_t>(rank)].work->is_settled());
  }
  EXPECT_EQ(fake->num_launched.load(), 0);
  EXPECT_EQ(fake->records.size(), size_t{2});
  EXPECT(fake->records[0].second == calls[2].stream && fake->records[1].second == calls[0].stream);
  group.post(1, calls[1]);
  EXPECT_EQ(fake->num_launched.load(), 1);
  EXPECT_EQ(fake->records.size(), size_t{2});  // whose call launches needs none
  EXPECT(fake->ready == (std::vector<const DcommCudaEvent*>{fake->records[1].first, nullptr, fake->records[0].first}));
  EXPECT(fake->detached == (std::vector<uint8_t>{1, 1, 1}));
  for (const CudaRankCall& call : calls) call.work->check_started();
  EXPECT_EQ(fake->num_events.load(), CudaEvents::kNumReady);
}

CHECK_CASE(cuda_work_posted_calls_that_cannot_be) {
  UseFake use;
  CudaThreadGroup group(2, {}, &kTable);
  fake->record_status = kDcommCudaInvalid;
  const Result refused = attempt([&] { group.post(0, asynchronous(0)); });
  EXPECT_EQ(static_cast<int>(refused.code), static_cast<int>(ErrorCode::kInvalidArgument));
  fake->record_status = kDcommCudaOk;
  for (int rank = 0; rank < 2; ++rank) group.post(rank, asynchronous(rank));  // nothing is left of it
  EXPECT_EQ(fake->num_launched.load(), 1);
  fake->record_status = kDcommCudaFailed;
  for (int rank = 0; rank < 2; ++rank) {
    const Result failed = attempt([&] { group.post(rank, asynchronous(rank)); });
    EXPECT_EQ(static_cast<int>(failed.code), static_cast<int>(ErrorCode::kCuda));
  }
  EXPECT_EQ(fake->num_launched.load(), 1);
}

CHECK_CASE(cuda_work_posted_calls_that_differ) {
  for (const int32_t status : {kDcommCudaOk, kDcommCudaInvalid}) {
    UseFake use;
    fake->launch_status = status;
    CudaThreadGroup group(2, {}, &kTable);
    std::vector<CudaRankCall> calls = {asynchronous(0), asynchronous(1)};
    if (status == kDcommCudaOk) calls[1].call.count = 7;
    group.post(0, calls[0]);
    const Result last = attempt([&] { group.post(1, calls[1]); });
    const Result waiting = attempt([&] { calls[0].work->check_started(); });
    const Result later = attempt([&] { group.post(0, asynchronous(0)); });
    const ErrorCode expected = status == kDcommCudaOk ? ErrorCode::kMismatch : ErrorCode::kInvalidArgument;
    for (const Result& result : {last, waiting, later}) {
      EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(expected));
      EXPECT_EQ(result.message, last.message);
    }
  }
}

CHECK_CASE(cuda_work_posted_calls_are_awaited) {
  UseFake use;
  CudaThreadGroup group(3, {}, &kTable);
  const std::vector<CudaRankCall> calls = {asynchronous(0), asynchronous(0), asynchronous(1)};
  group.post(0, calls[0]);
  group.post(0, calls[1]);
  group.post(1, calls[2]);
  const Result early = attempt([&] { group.await(0, *calls[0].work, {kShortNs, false}); });
  EXPECT_EQ(static_cast<int>(early.code), static_cast<int>(ErrorCode::kTimeout));
  EXPECT_MSG(contains(early.message, "for rank 2, which") && contains(early.message, "may still come"), early.message);
  EXPECT(!calls[0].work->is_settled());
  group.await(0, *calls[1].work, {kShortNs, true});
  for (const CudaRankCall& call : calls) {
    const Result late = attempt([&] { call.work->check_started(); });
    EXPECT_EQ(static_cast<int>(late.code), static_cast<int>(ErrorCode::kTimeout));
    EXPECT_MSG(contains(late.message, "for ranks 1, 2, which"), late.message);
  }
}

CHECK_CASE(cuda_work_posted_calls_outlast_a_group_block) {
  UseFake use;
  CudaThreadGroup group(2, {}, &kTable);
  const CudaRankCall posted = asynchronous(0);
  const CudaRankCall collected = asynchronous(0);
  group.post(0, posted);
  group.collect(0, collected);
  group.end_collecting(false);
  EXPECT(collected.work->is_settled() && !posted.work->is_settled());
  group.post(1, asynchronous(1));
  posted.work->check_started();
}

CHECK_CASE(cuda_work_posted_calls_of_threads) {
  UseFake use;
  CudaThreadGroup group(3, {}, &kTable);
  constexpr int kTurns = 200;
  std::vector<std::vector<CudaRankCall>> calls(3);
  for (int rank = 0; rank < 3; ++rank) {
    for (int turn = 0; turn < kTurns; ++turn) calls[static_cast<size_t>(rank)].push_back(asynchronous(rank));
  }
  std::vector<Result> results(3);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] {
      results[static_cast<size_t>(rank)] = attempt([&] {
        for (const CudaRankCall& call : calls[static_cast<size_t>(rank)]) {
          group.post(rank, call);
          if (rank == 1) group.await(rank, *call.work, {kLongNs, true});
          if (rank == 2 && group.withdraw(rank, *call.work)) group.post(rank, asynchronous(rank));
        }
        const CudaWork& last = *calls[static_cast<size_t>(rank)].back().work;
        group.await(rank, last, {kLongNs, true});
        if (rank != 2) last.check_started();
      });
    });
  }
  for (auto& thread : threads) thread.join();
  for (const Result& result : results) EXPECT_EQ(result.message, std::string());
  EXPECT_EQ(fake->num_launched.load(), kTurns);
}

CHECK_CASE(cuda_work_posted_calls_end_with_the_group) {
  UseFake use;
  const CudaRankCall taken = asynchronous(0);
  const CudaRankCall left = asynchronous(0);
  {
    CudaThreadGroup group(2, {}, &kTable);
    group.post(0, left);
    group.post(0, taken);
    EXPECT(group.withdraw(0, *taken.work));
    EXPECT(!group.withdraw(0, *taken.work) && !group.withdraw(1, *left.work));
    group.leave(0);  // its part is there
    EXPECT(!left.work->is_settled());
  }
  for (const CudaRankCall& call : {taken, left}) {
    const Result result = attempt([&] { call.work->check_started(); });
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kAborted));
  }
}

CHECK_CASE(cuda_work_posted_calls_and_who_leaves) {
  UseFake use;
  CudaThreadGroup group(2, {}, &kTable);
  const CudaRankCall first = asynchronous(0);
  const CudaRankCall second = asynchronous(0);
  group.post(1, asynchronous(1));
  group.leave(1);
  group.post(0, first);
  first.work->check_started();  // rank 1 had called before it left
  const Result result = attempt([&] { group.post(0, second); });
  EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kPeerLost));
}

CHECK_CASE(cuda_work_that_is_not_launched) {
  UseFake use;
  CudaThreadGroup group(2, {}, &kTable);
  const CudaRankCall call = asynchronous(0);
  group.collect(0, call);
  EXPECT_EQ(static_cast<int>(call.work->state()), static_cast<int>(kDcommCudaEventAhead));
  const Result early = attempt([&] { call.work->order_before(nullptr); });
  EXPECT_EQ(static_cast<int>(early.code), static_cast<int>(ErrorCode::kInvalidArgument));
  group.end_collecting(false);
  const Result late = attempt([&] { call.work->order_before(nullptr); });
  EXPECT_EQ(static_cast<int>(late.code), static_cast<int>(ErrorCode::kMismatch));
  EXPECT(contains(late.message, "was not started: its dcomm.group ended"));
  EXPECT_EQ(fake->num_launched.load(), 0);
}

CHECK_CASE(cuda_work_events_that_cannot_be_made) {
  UseFake use;
  fake->event_status = kDcommCudaFailed;
  CudaThreadGroup group(2, {}, &kTable);
  const Result result = attempt([&] { group.open(0); });
  EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kCuda));
  EXPECT_EQ(fake->num_destroyed.load(), 1);
  fake->event_status = kDcommCudaOk;
  group.open(0);
  EXPECT_EQ(fake->num_created.load(), 2);
}

CHECK_CASE(cuda_work_gives_its_event_back) {
  UseFake use;
  const auto events = CudaEvents::create(kTable, 0);
  std::vector<std::shared_ptr<DcommCudaEvent>> taken;
  for (int i = 0; i < CudaEvents::kNumReady + 2; ++i) taken.push_back(events->take());
  EXPECT_EQ(fake->num_events.load(), CudaEvents::kNumReady + 2);
  taken.clear();
  for (int i = 0; i < CudaEvents::kNumReady + 2; ++i) taken.push_back(events->take());
  EXPECT_EQ(fake->num_events.load(), CudaEvents::kNumReady + 2);
}

}  // namespace
}  // namespace dcomm::checks
