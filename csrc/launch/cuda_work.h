// The handle of an asynchronous operation on a GPU, and the events that such handles take turns with.
// Floor: launch (plain C++; no CUDA header).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "launch/cuda_api.h"

namespace dcomm {

/// Events of one GPU. As many exist as were in use at once, kNumReady at least: to make one allocates. Any thread.
class CudaEvents : public std::enable_shared_from_this<CudaEvents> {
 public:
  static constexpr int kNumReady = 16;

  static std::shared_ptr<CudaEvents> create(const DcommCudaTable& table, int device);
  /// No stream's wait for one of them is affected.
  ~CudaEvents();
  CudaEvents(const CudaEvents&) = delete;
  CudaEvents& operator=(const CudaEvents&) = delete;

  const DcommCudaTable& table() const { return table_; }
  /// Comes back when the last of its owners lets it go.
  std::shared_ptr<DcommCudaEvent> take();

 private:
  CudaEvents(const DcommCudaTable& table, int device) : table_(table), device_(device) {}
  DcommCudaEvent* make() const;

  const DcommCudaTable& table_;
  const int device_;
  std::mutex mutex_;
  std::vector<DcommCudaEvent*> free_;
};

/// One rank's handle. What launches the operation, or gives it up, writes it once; any thread, also another rank's.
class CudaWork {
 public:
  explicit CudaWork(int64_t timeout_ns) : timeout_ns_(timeout_ns) {}
  CudaWork(const CudaWork&) = delete;
  CudaWork& operator=(const CudaWork&) = delete;

  int64_t timeout_ns() const { return timeout_ns_; }
  void start(const DcommCudaTable& table, std::shared_ptr<DcommCudaEvent> end);
  /// It was not launched, and why. Nothing where it was.
  void give_up(const Error& error);

  /// It is launched or given up.
  bool is_settled() const { return phase_.load(std::memory_order_acquire) != Phase::kAhead; }
  /// Throws what give_up() was told; kInvalidArgument inside a dcomm.group, before the launch.
  void check_started() const;
  /// Never waits. Throws what give_up() was told; kCuda.
  DcommCudaEventState state() const;
  /// What is enqueued on `stream` from now on comes after the operation; asynchronous to the host. Throws as
  /// check_started(); kInvalidArgument where the stream captures a graph that the operation is no part of; kCuda.
  void order_before(void* stream) const;

 private:
  enum class Phase : uint8_t { kAhead, kLaunched, kGivenUp };

  const int64_t timeout_ns_;
  std::atomic<Phase> phase_{Phase::kAhead};  // the rest does not change any more once it is another
  const DcommCudaTable* table_ = nullptr;
  std::shared_ptr<DcommCudaEvent> end_;
  std::optional<Error> error_;
};

}  // namespace dcomm
