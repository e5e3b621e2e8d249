// All-to-all: block p of my array goes to rank p, rank p's block for me becomes block p of my result; the blocks may
// differ in length. Floor: algo (host and device).
//
// 1 step, S (n-1)/n bytes sent per rank where the blocks are equal. In turn t a rank sends segment t of each block
// that has one, then reads segment t of each block that it is to have. No deadlock: what turn t sends waits at most
// for credits of turn t - 2, which every rank gives once turn t - 2 has been sent everywhere.
#pragma once

#include "protocol/exec.h"
#include "schedule/partition.h"

namespace dcomm {

/// blocks: send_block(p), recv_block(p) -> Range of my arrays; slot_count, the elements that fit a pair slot;
/// num_channels.
template <class Exec, class Kernels, class Blocks>
DCOMM_HOST_DEVICE bool all_to_all(Exec& exec, const Kernels& kernels, const Blocks& blocks) {
  const int rank = exec.rank();
  const int world_size = exec.world_size();
  const int channel = exec.channel();
  const auto part = [&](Range whole, uint64_t turn) {
    const ChunkPlan plan = ChunkPlan::make(whole.count, 1, blocks.slot_count, blocks.num_channels);
    const Range range = plan.segment(0, channel, turn);
    return Range{whole.offset + range.offset, range.count};
  };
  const auto turns = [&](Range whole) {
    return ChunkPlan::make(whole.count, 1, blocks.slot_count, blocks.num_channels).num_tiles();
  };

  uint64_t num_turns = 0;
  for (int peer = 0; peer < world_size; ++peer) {
    const uint64_t sends = turns(blocks.send_block(peer));
    const uint64_t receives = turns(blocks.recv_block(peer));
    if (sends > num_turns) num_turns = sends;
    if (receives > num_turns) num_turns = receives;
  }
  for (uint64_t turn = 0; turn < num_turns; ++turn) {
    for (int i = 1; i < world_size; ++i) {
      const Edge edge{(rank + i) % world_size, Flow::kPair};
      const Range block = blocks.send_block(edge.peer);
      if (turn >= turns(block)) continue;
      const uint64_t seq = exec.load_counter(Counter::kPairOut, edge.peer) + turn;
      const auto to = exec.acquire(edge, seq);
      if (to == nullptr) return false;
      kernels.encode(exec, to, part(block, turn));
      exec.publish(edge, seq);
    }
    const Range own = part(blocks.send_block(rank), turn);
    if (own.count != 0) kernels.keep(exec, part(blocks.recv_block(rank), turn).offset, own);
    for (int i = 1; i < world_size; ++i) {
      const Edge edge{(rank + world_size - i) % world_size, Flow::kPair};
      const Range block = blocks.recv_block(edge.peer);
      if (turn >= turns(block)) continue;
      const uint64_t seq = exec.load_counter(Counter::kPairIn, edge.peer) + turn;
      const auto from = exec.arrive(edge, seq);
      if (from == nullptr) return false;
      kernels.decode(exec, part(block, turn), from);
      exec.release(edge, seq);
    }
  }
  for (int peer = 0; peer < world_size; ++peer) {
    if (peer == rank) continue;
    exec.store_counter(Counter::kPairOut, exec.load_counter(Counter::kPairOut, peer) + turns(blocks.send_block(peer)),
                       peer);
    exec.store_counter(Counter::kPairIn, exec.load_counter(Counter::kPairIn, peer) + turns(blocks.recv_block(peer)),
                       peer);
  }
  return true;
}

}  // namespace dcomm
