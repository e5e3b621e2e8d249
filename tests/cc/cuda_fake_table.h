// A C table that only notes what it is told, and ranks that call through it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "launch/cuda_group.h"

namespace dcomm::checks {

inline constexpr int64_t kLongNs = 20'000'000'000;
inline constexpr int64_t kShortNs = 60'000'000;

/// What the fake CUDA part was asked for, and what it shall answer; one check at a time uses it.
struct Fake {
  std::atomic<int> num_created{0};
  std::atomic<int> num_destroyed{0};
  std::atomic<int> num_stopped{0};
  std::atomic<int> num_launched{0};
  DcommCudaGroupOptions options{};
  DcommCudaCall call{};
  std::vector<const void*> in;
  std::vector<void*> out;
  std::vector<void*> streams;
  std::vector<uint8_t> detached;
  std::atomic<int> num_events{0};  // that exist
  std::vector<std::pair<const DcommCudaEvent*, void*>> waits;
  std::vector<std::pair<const DcommCudaEvent*, void*>> records;
  std::vector<const DcommCudaEvent*> ready;
  int32_t record_status = kDcommCudaOk;
  int32_t event_status = kDcommCudaOk;
  int32_t event_state = kDcommCudaEventAhead;
  int32_t create_status = kDcommCudaOk;
  int32_t launch_status = kDcommCudaOk;
  int32_t synchronize_status = kDcommCudaOk;
  DcommCudaFailure failure{};
};
inline Fake* fake = nullptr;

inline DcommCudaGroup* fake_group() { return reinterpret_cast<DcommCudaGroup*>(fake); }

inline int32_t answer(int32_t status, char* message, size_t message_bytes) {
  if (status != kDcommCudaOk) std::snprintf(message, message_bytes, "the fake says %d", static_cast<int>(status));
  return status;
}

inline int32_t fake_create(const DcommCudaGroupOptions* options, DcommCudaGroup** group, DcommCudaGroupInfo* info,
                           char* message, size_t message_bytes) {
  ++fake->num_created;
  fake->options = *options;
  *info = {options->num_channels, 132, options->slot_bytes, 0};
  if (fake->create_status == kDcommCudaOk) *group = fake_group();
  return answer(fake->create_status, message, message_bytes);
}
inline void fake_destroy(DcommCudaGroup*) { ++fake->num_destroyed; }
inline int32_t fake_run(DcommCudaGroup*, const DcommCudaCall* call, char* message, size_t message_bytes) {
  ++fake->num_launched;
  fake->call = *call;
  const int n = fake->options.num_ranks;
  fake->in.assign(call->in, call->in + n);
  fake->out.assign(call->out, call->out + n);
  fake->streams.assign(call->streams, call->streams + n);
  fake->detached.assign(static_cast<size_t>(n), 0);
  if (call->detached != nullptr) fake->detached.assign(call->detached, call->detached + n);
  fake->ready.assign(static_cast<size_t>(n), nullptr);
  if (call->ready != nullptr) fake->ready.assign(call->ready, call->ready + n);
  return answer(fake->launch_status, message, message_bytes);
}
inline void fake_poll(const DcommCudaGroup*, DcommCudaFailure* failure) { *failure = fake->failure; }
inline int32_t fake_synchronize(DcommCudaGroup*, uint64_t, char* message, size_t message_bytes) {
  return answer(fake->synchronize_status, message, message_bytes);
}
inline void fake_stop(DcommCudaGroup*) { ++fake->num_stopped; }
inline int32_t fake_event_create(int32_t, DcommCudaEvent** event, char* message, size_t message_bytes) {
  if (fake->event_status == kDcommCudaOk) {
    ++fake->num_events;
    *event = reinterpret_cast<DcommCudaEvent*>(static_cast<uintptr_t>(0x4000 + fake->num_events));
  }
  return answer(fake->event_status, message, message_bytes);
}
inline void fake_event_destroy(DcommCudaEvent*) {
  if (fake != nullptr) --fake->num_events;
}
inline int32_t fake_event_record(DcommCudaEvent* event, void* stream, char* message, size_t message_bytes) {
  if (fake->record_status == kDcommCudaOk) fake->records.emplace_back(event, stream);
  return answer(fake->record_status, message, message_bytes);
}
inline int32_t fake_event_wait(const DcommCudaEvent* event, void* stream, char*, size_t) {
  fake->waits.emplace_back(event, stream);
  return kDcommCudaOk;
}
inline int32_t fake_event_query(const DcommCudaEvent*, int32_t* state, char*, size_t) {
  *state = fake->event_state;
  return kDcommCudaOk;
}

inline const DcommCudaTable kTable = {kDcommCudaAbi,
                                      0,
                                      nullptr,
                                      &fake_create,
                                      &fake_destroy,
                                      &fake_run,
                                      &fake_poll,
                                      &fake_synchronize,
                                      &fake_stop,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      &fake_event_create,
                                      &fake_event_destroy,
                                      &fake_event_record,
                                      &fake_event_wait,
                                      &fake_event_query};

struct UseFake {
  Fake state;
  UseFake() { fake = &state; }
  ~UseFake() { fake = nullptr; }
};

inline CudaRankCall good_call(int rank, int64_t timeout_ns = kLongNs) {
  CudaRankCall call;
  call.call.collective = Collective::kAllReduce;
  call.call.algo = Algo::kRing;
  call.call.wire = DType::kF16;
  call.call.count = 1000;
  call.call.in = reinterpret_cast<const void*>(static_cast<uintptr_t>(0x1000 + rank));
  call.call.out = reinterpret_cast<void*>(static_cast<uintptr_t>(0x2000 + rank));
  call.stream = reinterpret_cast<void*>(static_cast<uintptr_t>(0x3000 + rank));
  call.timeout_ns = timeout_ns;
  return call;
}

struct Result {
  ErrorCode code = ErrorCode::kOk;
  std::string message;
};

inline Result attempt(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {};
}

/// Every rank in `calls` calls from a thread of its own.
inline std::vector<Result> run_ranks(CudaThreadGroup& group, const std::vector<CudaRankCall>& calls) {
  std::vector<Result> results(calls.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < calls.size(); ++r) {
    threads.emplace_back([&, r] { results[r] = attempt([&] { group.run(static_cast<int>(r), calls[r]); }); });
  }
  for (auto& thread : threads) thread.join();
  return results;
}

inline std::vector<CudaRankCall> good_calls(int world_size) {
  std::vector<CudaRankCall> calls;
  for (int r = 0; r < world_size; ++r) calls.push_back(good_call(r));
  return calls;
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace dcomm::checks
