// Records what every rank of a group would do in one all-reduce. Floor: launch.
//
// The algorithm's own text runs on the recording executor: pictures and simulators draw what ships, not a retelling.
#pragma once

#include <cstddef>
#include <vector>

#include "exec/record_exec.h"
#include "protocol/control.h"

namespace dcomm {

/// One rank's message, in the order in which the rank does things.
struct RecordedMessage {
  int rank = 0;       // whose step this is
  bool sends = true;  // false: waits for it
  int peer = 0;
  Flow flow = Flow::kScatter;
  uint64_t seq = 0;
  Range range;  // elements carried; of a wait: unknown (empty)
};

/// By rank, for a message of `count` elements that fits one slot; algo is not kAuto. Throws kInvalidArgument for an
/// algorithm that is no all-reduce.
std::vector<std::vector<RecordedMessage>> record_all_reduce(Algo algo, int world_size, size_t count);

}  // namespace dcomm
