#include "comm/work_queue.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <system_error>

#include "base/error.h"

#include "comm/short_slice.h"

#include "base/failpoint.h"

namespace dcomm {

/// Throws, with nothing queued, where the process may not have one more thread.
void WorkQueue::start_progress() {
  try {
    shared_->progress = std::make_unique<std::thread>([this] { progress_loop(); });
  } catch (const std::system_error& error) {
    throw_errno(ErrorCode::kInternal, "cannot start the progress thread of asynchronous operations (raise ulimit -u?)",
                error.code().value());
  }
}

void WorkQueue::push(const std::shared_ptr<Work>& work) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->progress == nullptr) start_progress();
  shared_->queue.push_back(work);
  shared_->num_queued.fetch_add(1, std::memory_order_release);
  shared_->num_pushed.fetch_add(1, std::memory_order_seq_cst);
  shared_->changed.notify_all();
}

void WorkQueue::wait_until_empty() {
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait(lock, [&] { return shared_->queue.empty(); });
}

void WorkQueue::stop() {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->stopping = true;
    shared_->changed.notify_all();
  }
  if (shared_->progress != nullptr && shared_->progress->joinable()) shared_->progress->join();
}

std::shared_ptr<Work> WorkQueue::take_message() {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->num_taken == shared_->queue.size()) return nullptr;
  const std::shared_ptr<Work>& next = shared_->queue[shared_->num_taken];
  if (!is_message(next->call().collective)) return nullptr;
  ++shared_->num_taken;
  return next;
}

bool WorkQueue::retire(const std::shared_ptr<Work>& work, const std::optional<Error>& error, int source) {
  bool is_empty = false;
  {
    const std::lock_guard lock(shared_->mutex);
    if (is_message(work->call().collective)) --shared_->num_taken;
    shared_->queue.erase(std::find(shared_->queue.begin(), shared_->queue.end(), work));
    shared_->num_queued.fetch_sub(1, std::memory_order_release);
    is_empty = shared_->queue.empty();
    shared_->changed.notify_all();
  }
  work->finish(error, source);
  return !is_empty;
}

void WorkQueue::progress_loop() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals belong to the threads of the program
  pthread_setname_np(pthread_self(), "dcomm-progress");
  ask_for_short_slices();
  for (;;) {
    std::shared_ptr<Work> work;
    {
      std::unique_lock lock(shared_->mutex);
      shared_->changed.wait(lock, [&] { return shared_->stopping || !shared_->queue.empty(); });
      if (shared_->queue.empty()) return;
      work = shared_->queue.front();
    }
    if (is_message(work->call().collective)) {
      serve_();
    } else {
      run(work);
    }
  }
}

/// Runs a queued collective and takes it off the queue.
void WorkQueue::run(const std::shared_ptr<Work>& work) {
  std::optional<Error> failed;
  try {
    failpoint("progress_begins");
    execute_(*work);
    failpoint("progress_ends");
  } catch (const Error& error) {
    failed = error;
  } catch (const std::exception& error) {
    failed = Error(ErrorCode::kInternal, error.what());
  }
  retire(work, failed);
}

}  // namespace dcomm
