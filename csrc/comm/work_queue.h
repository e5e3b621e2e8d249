// Asynchronous operations in the order of their calls, and the thread that runs them. Floor: comm.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "comm/work.h"

namespace dcomm {

class WorkQueue {
 public:
  /// execute: runs an operation, in the progress thread; what it throws is the operation's error.
  using Execute = std::function<void(const Work& work)>;
  explicit WorkQueue(Execute execute) : execute_(std::move(execute)), shared_(std::make_unique<Shared>()) {}
  /// After stop() or abandon().
  ~WorkQueue() = default;
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  /// Nothing is queued and nothing runs.
  bool is_empty() const { return shared_->num_queued.load(std::memory_order_acquire) == 0; }
  /// The first one starts the progress thread.
  void push(const std::shared_ptr<Work>& work);
  /// Blocks; every operation has a deadline.
  void wait_until_empty();
  /// Lets the progress thread end once the queue is empty, and waits for that.
  void stop();
  /// In a child process, where the progress thread does not exist: it is neither joined nor detached, and what it may
  /// have held or waited on at the fork is not destroyed, which would wait for it for ever.
  void abandon() { static_cast<void>(shared_.release()); }

  /// While the progress thread runs a recv that waits: runs the sends queued behind it, with no collective in between,
  /// in this same thread. The peer may be waiting for them before it sends what the recv waits for.
  void run_sends_behind();

 private:
  std::shared_ptr<Work> next_send();
  void run(const std::shared_ptr<Work>& work);
  void progress_loop();

  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::shared_ptr<Work>> queue;  // front: running
    std::atomic<size_t> num_queued{0};
    bool stopping = false;
    std::unique_ptr<std::thread> progress;
  };

  const Execute execute_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace dcomm
