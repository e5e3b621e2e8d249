// Streams and events of an emulated GPU: a thread for each stream runs what it is given, in order.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace dcomm::checks::cuda {

class Stream;

/// What streams were given while they captured it. It is replayed in that order, which every graph allows.
struct Graph {
  std::vector<std::function<void()>> tasks;
  std::vector<Stream*> streams;  // that capture it
};

/// An event as recorded once: done when its stream has come to it. graph: that it is part of instead; nullptr: none.
class Ticket {
 public:
  Graph* graph = nullptr;
  void finish() {
    const std::lock_guard lock(mutex_);
    done_ = true;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_; });
  }
  bool wait_for(std::chrono::nanoseconds timeout) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return done_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
};

/// Never ends: as on a GPU, a stream that nobody destroys lives as long as the process.
class Stream {
 public:
  Stream() {
    std::thread([this] { work(); }).detach();
  }

  void enqueue(std::function<void()> task) {
    const std::lock_guard lock(mutex_);
    if (graph_ != nullptr) return graph_->tasks.push_back(std::move(task));
    tasks_.push_back(std::move(task));
    changed_.notify_one();
  }
  std::shared_ptr<Ticket> record() {
    auto ticket = std::make_shared<Ticket>();
    ticket->graph = graph();
    if (ticket->graph != nullptr) return ticket;
    enqueue([ticket] { ticket->finish(); });
    return ticket;
  }
  /// To wait for a part of a graph makes this stream capture it too.
  void wait_for(std::shared_ptr<Ticket> ticket) {
    if (ticket->graph != nullptr) return capture(ticket->graph);
    enqueue([ticket = std::move(ticket)] { ticket->wait(); });
  }

  /// nullptr: it captures none.
  Graph* graph() {
    const std::lock_guard lock(mutex_);
    return graph_;
  }
  void capture(Graph* graph) {
    const std::lock_guard lock(mutex_);
    if (graph_ == nullptr && graph != nullptr) graph->streams.push_back(this);
    graph_ = graph;
  }

 private:
  void work() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return !tasks_.empty(); });
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  Graph* graph_ = nullptr;
};

/// The legacy default stream has the handles 0 and 1, the per-thread one 2, others what create() gave.
class Streams {
 public:
  static Streams& instance() {
    static Streams& streams = *new Streams;  // its threads outlive the end of main
    return streams;
  }
  void* create() {
    const std::lock_guard lock(mutex_);
    auto* const stream = new Stream;
    streams_[stream] = stream;
    return stream;
  }
  /// For what they were given so far.
  bool wait_all(std::chrono::nanoseconds timeout) {
    std::vector<std::shared_ptr<Ticket>> tickets{legacy_.record()};
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [handle, stream] : streams_) tickets.push_back(stream->record());
    }
    bool done = true;
    for (const auto& ticket : tickets) done = ticket->wait_for(timeout) && done;
    return done;
  }
  /// nullptr: no such stream.
  Stream* find(void* handle) {
    if (reinterpret_cast<uintptr_t>(handle) <= 1) return &legacy_;
    if (reinterpret_cast<uintptr_t>(handle) == 2) {
      static thread_local Stream& own = *new Stream;
      return &own;
    }
    const std::lock_guard lock(mutex_);
    const auto found = streams_.find(handle);
    return found == streams_.end() ? nullptr : found->second;
  }

 private:
  std::mutex mutex_;
  std::map<void*, Stream*> streams_;
  Stream legacy_;
};

}  // namespace dcomm::checks::cuda
