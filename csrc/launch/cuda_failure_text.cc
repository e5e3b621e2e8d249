#include "launch/cuda_failure_text.h"

#include <sstream>

namespace dcomm {

CudaOutcome describe_cuda_failure(const DcommCudaFailure& failure) {
  std::ostringstream text;
  const auto flow = static_cast<Flow>(failure.flow);
  if (failure.code == static_cast<int32_t>(ErrorCode::kMismatch) && flow == Flow::kMessage) {
    text << "rank " << failure.rank << " has received on the GPU a message of rank " << failure.peer
         << " of another count, dtype or tag than its recv names; make both name the same, in the same order, on a new "
            "communicator";
    return {ErrorCode::kMismatch, text.str()};
  }
  if (failure.code == static_cast<int32_t>(ErrorCode::kMismatch)) {
    text << "ranks " << failure.rank << " and " << failure.peer
         << " made different calls on the GPU; make every rank issue the same collectives in the same order, with "
            "equal arguments, on a new communicator";
    return {ErrorCode::kMismatch, text.str()};
  }
  const bool timed_out = failure.code == static_cast<int32_t>(ErrorCode::kTimeout);
  text << "rank " << failure.rank << " gave up on the GPU, waiting for rank " << failure.peer;
  if (flow == Flow::kMessage) {
    text << " to send";
  } else if (flow == Flow::kMessageCredit) {
    text << " to receive";
  } else {
    text << " (message " << failure.seq << " of flow " << failure.flow << ')';
  }
  text << ": " << (timed_out ? "the deadline passed; something else may keep the GPU busy" : "stopped by the host")
       << "; results of the operations since the last check are not valid, make a new communicator";
  if (!timed_out) return {ErrorCode::kAborted, text.str()};
  return {ErrorCode::kTimeout, text.str(), {{failure.peer}}};
}

}  // namespace dcomm
