// The pthread_atfork child handler and its table of descriptors. Floor: comm.
//
// The handler runs in the child of a process that may have many threads: only async-signal-safe calls and
// lock-free atomics are allowed in it, hence the fixed table.
#include "comm/fork_guard.h"

#include <pthread.h>
#include <unistd.h>
#include <atomic>
#include <cerrno>

#include "base/error.h"

namespace dcomm {
namespace {

constexpr int kTableSize = 4096;

std::atomic<int> guarded_table[kTableSize];  // descriptor + 1; 0 is a free entry
std::atomic<int> table_end{0};               // entries from here on have never been used
std::atomic<uint32_t> generation{0};

void after_fork_in_child() noexcept {
  const int saved_errno = errno;
  generation.fetch_add(1, std::memory_order_relaxed);
  const int end = table_end.load(std::memory_order_relaxed);
  for (int i = 0; i < end; ++i) {
    const int entry = guarded_table[i].exchange(0, std::memory_order_relaxed);
    if (entry > 0) ::close(entry - 1);
  }
  errno = saved_errno;
}

}  // namespace

bool in_forked_child() noexcept { return fork_generation() != 0; }

uint32_t fork_generation() noexcept { return generation.load(std::memory_order_relaxed); }

void install_fork_guard() {
  static const int error = pthread_atfork(nullptr, nullptr, &after_fork_in_child);
  if (error != 0) throw_errno(ErrorCode::kInternal, "pthread_atfork", error);
}

void close_in_child(int descriptor) {
  if (descriptor < 0) return;
  for (int i = 0; i < kTableSize; ++i) {
    // The end is raised before the entry is taken: a fork in between sees a free entry, not a hidden one.
    int end = table_end.load(std::memory_order_relaxed);
    while (end <= i && !table_end.compare_exchange_weak(end, i + 1, std::memory_order_relaxed)) {
    }
    int free_entry = 0;
    if (guarded_table[i].compare_exchange_strong(free_entry, descriptor + 1, std::memory_order_relaxed)) return;
  }
}

void forget_in_child(int descriptor) {
  if (descriptor < 0) return;
  const int end = table_end.load(std::memory_order_relaxed);
  for (int i = 0; i < end; ++i) {
    int entry = descriptor + 1;
    if (guarded_table[i].compare_exchange_strong(entry, 0, std::memory_order_relaxed)) return;
  }
}

}  // namespace dcomm
