// Asynchronous operations in the order of their calls, and the thread that runs them. Floor: comm.
//
// Collectives run one after the other. Messages that no collective comes before are under way together: the thread
// hands itself over to a function that takes them, and gives each back when it has ended.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "comm/work.h"

namespace dcomm {

class WorkQueue {
 public:
  /// execute: runs a collective, in the progress thread; what it throws is the operation's error.
  using Execute = std::function<void(const Work& work)>;
  /// serve: takes messages with take_message() and gives them back with retire(), which tells it when to return. Also
  /// returns when there is none to take and it has none. Throws nothing.
  using Serve = std::function<void()>;
  WorkQueue(Execute execute, Serve serve)
      : execute_(std::move(execute)), serve_(std::move(serve)), shared_(std::make_unique<Shared>()) {}
  /// After stop() or abandon().
  ~WorkQueue() = default;
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  /// Nothing is queued and nothing runs.
  bool is_empty() const { return shared_->num_queued.load(std::memory_order_acquire) == 0; }
  /// The first one starts the progress thread.
  void push(const std::shared_ptr<Work>& work);
  /// How many there have been.
  size_t num_pushed() const { return shared_->num_pushed.load(std::memory_order_seq_cst); }
  /// Blocks; every operation has a deadline.
  void wait_until_empty();
  /// Lets the progress thread end once the queue is empty, and waits for that.
  void stop();
  /// In a child process, where the progress thread does not exist: it is neither joined nor detached, and what it may
  /// have held or waited on at the fork is not destroyed, which would wait for it for ever.
  void abandon() { static_cast<void>(shared_.release()); }

  /// Progress thread: the next message with no collective before it; nullptr: none.
  std::shared_ptr<Work> take_message();
  /// Progress thread: `work` has ended. False: the queue is empty, so that from now on another thread may run
  /// operations.
  bool retire(const std::shared_ptr<Work>& work, const std::optional<Error>& error, int source = -1);

 private:
  void run(const std::shared_ptr<Work>& work);
  void start_progress();
  void progress_loop();

  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::shared_ptr<Work>> queue;  // in the order of the calls
    size_t num_taken = 0;                     // at the front: messages under way
    std::atomic<size_t> num_queued{0};
    std::atomic<size_t> num_pushed{0};
    bool stopping = false;
    std::unique_ptr<std::thread> progress;
  };

  const Execute execute_;
  const Serve serve_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace dcomm
