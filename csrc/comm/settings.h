// What all ranks of a communicator must have in common; decided by rank 0, sent to all at init. Floor: comm.
#pragma once

#include <cstdint>

#include "comm/selector.h"
#include "exec/host_context.h"
#include "protocol/control.h"
#include "schedule/window_layout.h"

namespace dcomm {

struct Settings {
  uint64_t slot_bytes = 0;
  uint64_t exchange_slot_bytes = 0;
  uint64_t side_slot_bytes = 0;  // of the fifo, pair and message pools
  uint64_t packet_bytes = 0;
  int64_t timeout_ns = 300'000'000'000;
  int64_t warn_ns = 60'000'000'000;
  uint64_t first_number = 0;  // DCOMM_TEST_FIRST_NUMBER: numbers of operations and messages begin after it
  int32_t depth = 2;
  AlgoSteps algo_steps;            // what "auto" means
  Algo forced_algo = Algo::kAuto;  // DCOMM_ALGO
  bool oversubscribed = false;     // more ranks than CPUs: waits must give up the core
  bool deterministic = false;      // only algorithms that sum in canonical order
  uint8_t unused[1] = {};

  /// Reads DCOMM_ALGO, DCOMM_WINDOW_BYTES, DCOMM_TIMEOUT_S, DCOMM_WARN_S and the CPU affinity; for tests of long lives
  /// DCOMM_TEST_FIRST_NUMBER.
  /// Throws kInvalidArgument naming the variable, its value and what is accepted.
  static Settings from_environment(int world_size, bool deterministic);

  WindowLayout layout(int world_size) const;
  /// background: the operation runs on the progress thread, beside a computing caller.
  WaitPolicy wait_policy(bool background) const;
};

/// The algorithm for a message of nbytes on the wire; a pure function of what all ranks agree on, with is_shared: all
/// ranks reach the arrays, on which they agree as well. DCOMM_ALGO=direct is for such arrays only. Throws
/// kInvalidArgument where `requested` sums in another order than the canonical one and the communicator is
/// deterministic.
Algo select_algo(const Settings& settings, Algo requested, uint64_t nbytes, bool is_shared = false);

/// "auto", "ring", "two_shot"; throws kInvalidArgument otherwise. what: where the name stood.
Algo parse_algo(const char* name, const char* what);

}  // namespace dcomm
