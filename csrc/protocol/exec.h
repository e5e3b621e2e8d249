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
//   load_counter(c[, root]), store_counter(c, v[, root])  messages of a flow so far: kept where the executor runs, so
//   that
//                                            a captured CUDA graph can be replayed; never reset
//
// A wait ends by arrival, by deadline or by abort; then it returns nullptr / false, uniformly over the lanes,
// and the algorithm returns false at once. Counters are not stored on failure: the communicator is broken.
//
// Kernels move data between the user's arrays and slots:
//   encode(exec, slot, range)                 slot <- wire(in[range])
//   decode(exec, range, slot)                 out[range] <- slot
//   accumulate(exec, to, from, range)         to <- wire(from + in[range])                        (to may be from)
//   finish(exec, to, from, range)             to, out[range] <- wire(final(from + in[range]))     (to may be from)
//   forward(exec, to, from, range)            to, out[range] <- from                              (to may be from)
//   reduce_canonical(exec, range, from, to)   out[range], to(p) <- wire(final(sum in canonical order of from(p)
//                                             and wire(in[range]))); from, to: rank -> slot
#pragma once

#include <cstdint>

#include "schedule/placement.h"

namespace dcomm {

/// One directed flow between this rank and `peer`.
struct Edge {
  int peer;
  Flow flow;
};

enum class Counter : uint8_t { kTwoShot = 0, kRing = 1, kBarrier = 2, kFifo = 3 };

}  // namespace dcomm
