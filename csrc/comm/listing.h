// The communicators of this process, so that the error of one can say what its ranks do in the others. Floor: comm.
//
// Two ranks that use two communicators in opposite order wait for each other, each inside another one. Only who sees
// both can say so.
#pragma once

#include <string>
#include <vector>

#include "exec/host_context.h"

namespace dcomm {

/// A communicator's entry in the list. All functions may be called by any thread.
class Listing {
 public:
  struct Entry {
    const HostContext* context = nullptr;
    const void* relatives = nullptr;  // the same for all communicators that are split from one
    std::vector<int> root_ranks;      // of each rank, in the communicator that all come from
    std::string made_at;              // "train.py:12"
  };

  Listing() = default;
  Listing(const Listing&) = delete;
  Listing& operator=(const Listing&) = delete;

  /// The context must live until strike().
  void enter(Entry entry);
  void set_made_at(const std::string& site);
  void strike();
  /// In a forked child, where another thread may have held the list's lock for ever.
  void abandon() { is_entered_ = false; }

  /// "; rank 1 is in all_reduce #3 of another communicator (...)" for each rank of this one that is; "": none is.
  std::string describe_others() const;

 private:
  bool is_entered_ = false;
};

}  // namespace dcomm
