// What a call through the C table must be like, and which ranks' arrays and streams it has. Floor: launch (plain C++).
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "launch/cuda_api.h"
#include "protocol/control.h"

namespace dcomm {

/// Of numbers that came through the C table.
inline bool is_known_call(const DcommCudaCall& call, int num_ranks) {
  const auto collective = static_cast<Collective>(call.collective);
  const auto op = static_cast<ReduceOp>(call.op);
  const auto is_rank = [&](int number) { return number >= 0 && number < num_ranks; };
  return (collective != Collective::kSend || (is_rank(call.root) && is_rank(call.peer) && call.root != call.peer)) &&
         call.dtype >= 0 && call.dtype < kNumDTypes && call.wire >= 0 && call.wire < kNumWireDTypes &&
         (!has_root(collective) || is_rank(call.root)) &&
         (!reduces(collective) || op == ReduceOp::kSum ||
          (op == ReduceOp::kAvg && is_floating(static_cast<DType>(call.dtype))));
}

/// Of a message, two ranks.
inline bool takes_part(const DcommCudaCall& call, int rank) {
  return static_cast<Collective>(call.collective) != Collective::kSend || rank == call.root || rank == call.peer;
}

/// Of the ranks for which counts(rank), the first of equal streams; the others' events would say the same.
template <class Counts>
bool is_first_of_equal_streams(const DcommCudaCall& call, int rank, int first_rank, const Counts& counts) {
  if (!counts(rank)) return false;
  for (int r = first_rank; r < rank; ++r) {
    if (counts(r) && call.streams[r - first_rank] == call.streams[rank - first_rank]) return false;
  }
  return true;
}

/// What the operation waits for on this rank's behalf; nullptr: its stream, as it is now.
inline const DcommCudaEvent* ready_event(const DcommCudaCall& call, int rank, int first_rank = 0) {
  return call.ready == nullptr ? nullptr : call.ready[rank - first_rank];
}

/// Whether the operation is to come after what this rank's stream has been given. first_rank: whose arrays and streams
/// the call has first.
inline bool is_first_of_its_stream(const DcommCudaCall& call, int rank, int first_rank = 0) {
  return is_first_of_equal_streams(call, rank, first_rank, [&](int r) {
    return takes_part(call, r) && ready_event(call, r, first_rank) == nullptr;
  });
}

/// Whether this rank's stream is to wait for the operation's end: once for a stream of which any rank wants that.
inline bool waits_for_end(const DcommCudaCall& call, int rank, int first_rank = 0) {
  return is_first_of_equal_streams(call, rank, first_rank, [&](int r) {
    return takes_part(call, r) && (call.detached == nullptr || call.detached[r - first_rank] == 0);
  });
}

/// A root's partners may have no array to read, or none to write.
inline bool needs_in(const DcommCudaCall& call, int rank) {
  const auto collective = static_cast<Collective>(call.collective);
  return (collective != Collective::kScatter && collective != Collective::kSend) || rank == call.root;
}
inline bool needs_out(const DcommCudaCall& call, int rank) {
  const auto collective = static_cast<Collective>(call.collective);
  if (collective == Collective::kSend) return rank == call.peer;
  return (collective != Collective::kGather && collective != Collective::kReduce) || rank == call.root;
}

/// Addresses where the call needs them, at multiples of an element.
inline bool has_good_arrays(const DcommCudaCall& call, int rank, int first_rank = 0) {
  if (call.count == 0) return true;
  const auto in = reinterpret_cast<uintptr_t>(call.in[rank - first_rank]);
  const auto out = reinterpret_cast<uintptr_t>(call.out[rank - first_rank]);
  if ((in == 0 && needs_in(call, rank)) || (out == 0 && needs_out(call, rank))) return false;
  return (in | out) % dtype_bytes(static_cast<DType>(call.dtype)) == 0;
}

}  // namespace dcomm
