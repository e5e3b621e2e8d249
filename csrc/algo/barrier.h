// Barrier: everyone signals everyone. Floor: algo (host and device). 1 step, no data.
#pragma once

#include "protocol/exec.h"

namespace dcomm {

template <class Exec>
DCOMM_HOST_DEVICE bool barrier(Exec& exec) {
  const uint64_t seq = exec.load_counter(Counter::kBarrier);
  exec.signal_all(Flow::kBarrier, seq);
  if (!exec.wait_all(Flow::kBarrier, seq)) return false;
  exec.store_counter(Counter::kBarrier, seq + 1);
  return true;
}

}  // namespace dcomm
