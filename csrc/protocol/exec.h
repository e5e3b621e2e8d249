// The executor contract: what an algorithm may ask of the machine it runs on. Floor: protocol.
//
// An algorithm is written once, as a template over (Exec, Kernels). An executor is one rank's lane group on
// one channel: host threads (exec/host_exec.h), the threads of a CUDA block (exec/cuda_block_exec.cuh), or a
// recorder that notes the steps (exec/record_exec.h). Every lane calls every verb, in the same order; loop trip
// counts depend on (rank, channel, sizes) only.
//
//   rank() world_size() channel()            who we are
//   lane() num_lanes()                       which part of the group
//   for_each_pack(count, f)                  f(first, n) over this lane's share of [0, count)
//   outbox(edge, seq), inbox(edge, seq)      addresses only: the slot of an outgoing / incoming message
//   acquire(edge, seq) -> slot or nullptr    outbox, once it may be written (push: waits for the credit)
//   publish(edge, seq)                       all lanes have written; release: the peer may read
//   arrive(edge, seq) -> slot or nullptr     acquire: waits until the peer has published
//   release(edge, seq)                       all lanes have read (push: returns the credit)
//   publish_and_release(out, s, in, t)       both, with one barrier of the lanes
//   signal_all(flow, seq)                    publish to every peer
//   wait_all(flow, seq) -> bool              arrive from every peer
//   load_counter(c[, peer]), store_counter(c, v[, peer])
//                                            messages of a flow so far: kept where the executor runs, so that a
//                                            captured CUDA graph can be replayed; never reset
//   packet_capacity()                        elements' bytes that a sender's packets of one message can carry
//   put_packets, take_packets                data that carries its flag (one_shot); see the executor's own comment
//   all_lent() -> bool                       between "ready" and "done" (algo/borrow.h): every rank's input lies in one
//                                            region that all ranks reach; the same on all ranks
//
// A wait ends by arrival, by deadline or by abort; then it returns nullptr / false, uniformly over the lanes,
// and the algorithm returns false at once. Counters are not stored on failure: the communicator is broken.
//
// Kernels move data between the user's arrays and slots. in and out are a Loader and a Storer (protocol/elements.h):
// one array each, or, in an all_reduce on the host, many; no algorithm can tell.
//   encode(exec, slot, range)                 slot <- wire(in[range])
//   decode(exec, range, slot)                 out[range] <- slot
//   accumulate(exec, to, from, range)         to <- wire(from + in[range])                        (to may be from)
//   finish(exec, to, from, range)             to, out[range] <- wire(final(from + in[range]))     (to may be from)
//   forward(exec, to, from, range)            to, out[range] <- from                              (to may be from)
//   copy(exec, to, from, range)               to <- from
//   keep(exec, to_offset, range)              out[to_offset, + range.count) <- in[range]: this rank's own block
//   reduce_canonical(exec, range, from, to)   out[range], to(p) <- wire(final(sum in canonical order of from(p)
//                                             and wire(in[range]))); from, to: rank -> slot; to may be NoOutputs
//   reduce_everywhere(exec, range)            on every rank: out[range] <- wire(final(canonical sum of all ranks'
//   in[range])) combine(exec, range, froms, n, tos, m, is_final)  to(0..m-1)[, out[range]] <- wire((in[range] +
//   from(0)) + from(1)):
//                                             own value first, n and m from 0 to 2; final: out too, and averaged
//   reduce_here(exec, range)                  out[range] <- final(canonical sum of all ranks' in[range], where they
//   lie) fetch(exec, to_offset, peer, range)       out[to_offset, + range.count) <- peer's in[range], where it lies
//   put_packets(exec, seq, range)             in[range] to every peer, as packets
//   reduce_packets(exec, seq, range) -> bool  out[range] <- wire(final(sum in canonical order of all ranks' packets))
//   put_envelope, get_envelope                a slot with a message's envelope instead of elements (send, recv)
//   shifted_out(offset)                       Kernels whose out[range] lands `offset` elements earlier
#pragma once

#include <cstddef>
#include <cstdint>

#include "schedule/placement.h"

namespace dcomm {

/// One directed flow between this rank and `peer`.
struct Edge {
  int peer;
  Flow flow;
};

/// For reduce_canonical: the sum stays here.
struct NoOutputs {
  DCOMM_HOST_DEVICE constexpr std::byte* operator()(int) const { return nullptr; }
};

enum class Counter : uint8_t {
  kTwoShot = 0,
  kRing = 1,
  kBarrier = 2,
  kTree = 3,
  kExchange = 4,
  kPacket = 5,
  kDirect = 6,
  kFifo = 7,     // by root
  kPairOut = 8,  // by receiver
  kPairIn = 9,   // by sender
  kMessageOut = 10,
  kMessageIn = 11,
};
inline constexpr int kNumGroupCounters = 7;  // one for all peers
inline constexpr int kNumPeerCounters = 5;   // the others, one for each peer

}  // namespace dcomm
