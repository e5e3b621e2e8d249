// Every pair of ranks swaps one segment per tile: the frame of all_gather, reduce_scatter and one_shot.
// Floor: algo (host and device).
//
// Message seq of a pair lies where both of them have read message seq - 2 (schedule/placement.h), so no credit is
// needed: a rank sends tile t+1 after it has taken tile t-1 from everyone. Tile t+1 leaves before tile t is taken.
#pragma once

#include "base/mutation.h"
#include "protocol/exec.h"

namespace dcomm {

/// fill(peer, tile, slot): writes what `peer` is to have. take(tile, seq): reads what all peers sent.
template <class Exec, class Fill, class Take>
DCOMM_HOST_DEVICE bool exchange_tiles(Exec& exec, uint64_t num_tiles, const Fill& fill, const Take& take) {
  const int rank = exec.rank();
  const int world_size = exec.world_size();
  const uint64_t first = exec.load_counter(Counter::kExchange);
  for (uint64_t turn = 0; turn <= num_tiles; ++turn) {
    if (turn < num_tiles) {
      // The slots that this rank's lanes have just read are dealt out to them differently for a shorter tile.
      if (turn > 1 && !mutated(Mutation::kExchangeNoReuseSync)) exec.sync();
      for (int i = 1; i < world_size; ++i) {
        const int peer = rank + i < world_size ? rank + i : rank + i - world_size;
        fill(peer, turn, exec.outbox(Edge{peer, Flow::kExchange}, first + turn));
      }
      exec.signal_all(Flow::kExchange, first + turn);
    }
    if (turn == 0) continue;  // one tile of look-ahead
    const uint64_t seq = first + turn - 1;
    if (!exec.wait_all(Flow::kExchange, seq)) return false;
    take(turn - 1, seq);
  }
  exec.store_counter(Counter::kExchange, first + num_tiles);
  return true;
}

}  // namespace dcomm
