// Peers' arrays, used where they lie: the frame of the direct collectives. Floor: algo (host and device).
//
//   1 ready   my array may be used          n-1 messages without data
//   2         peers' arrays are used
//   3 done    I am done with your arrays    n-1 messages without data
//
// A rank's messages are numbered 2k (ready) and 2k+1 (done) of operation k. It is at most two messages ahead of what a
// peer has yet to take: to send 2k+3 it needs the peer's 2k+2, sent after the peer had taken 2k+1. Therefore a rank
// that returns has heard from every peer that its arrays are its own again.
#pragma once

#include "base/failpoint.h"
#include "base/mutation.h"
#include "protocol/exec.h"

namespace dcomm {

/// Steps 1 and 3 around `use`.
template <class Exec, class Use>
DCOMM_HOST_DEVICE bool borrow_arrays(Exec& exec, const Use& use) {
  const uint64_t ready = exec.load_counter(Counter::kDirect);
  const uint64_t done = ready + 1;
  exec.signal_all(Flow::kDirect, ready);
  if (!mutated(Mutation::kDirectNoReadyWait) && !exec.wait_all(Flow::kDirect, ready)) return false;
  failpoint("arrays_lent");
  use();
  exec.signal_all(Flow::kDirect, done);
  if (!mutated(Mutation::kDirectNoDoneWait) && !exec.wait_all(Flow::kDirect, done)) return false;
  exec.store_counter(Counter::kDirect, done + 1);
  return true;
}

/// The same where some rank may have come with an array that the others do not reach. "Ready" says where the arrays lie
/// (OpRecord), so that all ranks see the same and either all `use` them or all go the way of `otherwise`.
template <class Exec, class Use, class Otherwise>
DCOMM_HOST_DEVICE bool borrow_arrays_or(Exec& exec, const Use& use, const Otherwise& otherwise) {
  bool lent = false;
  const bool finished = borrow_arrays(exec, [&] {
    lent = exec.all_lent();
    if (lent) use();
  });
  return finished && (lent || otherwise());
}

}  // namespace dcomm
