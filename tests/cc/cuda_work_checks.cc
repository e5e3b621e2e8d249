// Asynchronous operations of ranks that are threads: whose streams wait, events, and what was never launched.
#include <memory>
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
