// One thread at a time inside a communicator. Floor: comm.
#pragma once

#include <atomic>

#include "base/error.h"

namespace dcomm {

/// From its construction to its end; throws kConcurrentUse where another thread is inside.
class Entry {
 public:
  explicit Entry(std::atomic<bool>& entered) : entered_(entered) {
    DCOMM_CHECK(!entered.exchange(true, std::memory_order_acquire), ErrorCode::kConcurrentUse,
                "another thread is using this communicator; give each thread its own, or take turns");
  }
  ~Entry() { entered_.store(false, std::memory_order_release); }
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;

 private:
  std::atomic<bool>& entered_;
};

}  // namespace dcomm
