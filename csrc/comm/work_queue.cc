#include "comm/work_queue.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <exception>
#include <string>

namespace dcomm {

void WorkQueue::push(const std::shared_ptr<Work>& work) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->progress == nullptr) shared_->progress = std::make_unique<std::thread>([this] { progress_loop(); });
  shared_->queue.push_back(work);
  shared_->num_queued.fetch_add(1, std::memory_order_release);
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

void WorkQueue::run_sends_behind() {
  while (const std::shared_ptr<Work> work = next_send()) run(work);
}

std::shared_ptr<Work> WorkQueue::next_send() {
  const std::lock_guard lock(shared_->mutex);
  for (size_t i = 1; i < shared_->queue.size() && is_message(shared_->queue[i]->call().collective); ++i) {
    if (shared_->queue[i]->call().collective == Collective::kSend) return shared_->queue[i];
  }
  return nullptr;
}

void WorkQueue::progress_loop() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals belong to the threads of the program
  pthread_setname_np(pthread_self(), "dcomm-progress");
  for (;;) {
    std::shared_ptr<Work> work;
    {
      std::unique_lock lock(shared_->mutex);
      shared_->changed.wait(lock, [&] { return shared_->stopping || !shared_->queue.empty(); });
      if (shared_->queue.empty()) return;
      work = shared_->queue.front();
    }
    run(work);
  }
}

/// Runs a queued operation and takes it off the queue.
void WorkQueue::run(const std::shared_ptr<Work>& work) {
  ErrorCode code = ErrorCode::kOk;
  std::string message;
  try {
    execute_(*work);
  } catch (const Error& error) {
    code = error.code();
    message = error.what();
  } catch (const std::exception& error) {
    code = ErrorCode::kInternal;
    message = error.what();
  }
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->queue.erase(std::find(shared_->queue.begin(), shared_->queue.end(), work));
    shared_->num_queued.fetch_sub(1, std::memory_order_release);
    shared_->changed.notify_all();
  }
  work->finish(code, message);
}

}  // namespace dcomm
