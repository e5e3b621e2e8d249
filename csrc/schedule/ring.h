// The ring: who sends which chunk at which step. Floor: schedule (pure integers; host and device).
//
// Chunk c starts at rank c+1, gathers a term at every rank and is complete at rank c, its owner, after
// n-1 steps; n-1 more steps carry the result around to rank c-1. One formula covers both halves.
//   n = 4, chunk 0:  1 -> 2 -> 3 -> 0 (complete) -> 1 -> 2 -> 3
// Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 2009.
#pragma once

#include <cstdint>

#include "base/macros.h"

namespace dcomm {

DCOMM_HOST_DEVICE constexpr int ring_next(int rank, int world_size) { return rank + 1 == world_size ? 0 : rank + 1; }
DCOMM_HOST_DEVICE constexpr int ring_prev(int rank, int world_size) { return rank == 0 ? world_size - 1 : rank - 1; }

/// Steps (hops) of one all-reduce: 2 (n - 1).
DCOMM_HOST_DEVICE constexpr int ring_num_steps(int world_size) { return 2 * (world_size - 1); }

/// The chunk that `rank` sends at `step`; what it received at step - 1 (for step > 0).
DCOMM_HOST_DEVICE constexpr int ring_send_chunk(int rank, int world_size, int step) {
  return ((rank - 1 - step) % world_size + 2 * world_size) % world_size;
}

/// Which of the n travelling buffers carries `chunk` in a given round, where buffers are never copied.
/// A buffer ends its round at rank chunk - 1, which starts chunk - 2 in it in the next round: so a rank's
/// first buffer of a round is the one it consumed last, and no credit is needed to reuse it.
DCOMM_HOST_DEVICE constexpr int ring_buffer(int chunk, int world_size, uint64_t round) {
  const uint64_t n = static_cast<uint64_t>(world_size);
  return static_cast<int>((static_cast<uint64_t>(chunk) + 2 * (round % n)) % n);
}

}  // namespace dcomm
