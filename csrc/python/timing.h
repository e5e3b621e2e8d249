// Times collectives with no Python between the calls, as a C program beside an MPI would. Floor: python.
#pragma once

#include <pybind11/pybind11.h>

namespace dcomm {

/// Binds time_all_reduce(comm, buffers, inputs, expected, num_offsets, count, dtype, wire, op, algo, calls, batches,
/// num_warm) -> ([microseconds per call, one entry per batch], wrong elements). Collective; the GIL is released.
///   buffers: [(address, address), ...], what call number i reads and writes: entry i modulo their number
///   inputs, expected: addresses of count + num_offsets - 1 elements; batch b takes them from element b modulo
///     num_offsets on, so that what an earlier batch left behind is wrong. expected is the result after the
///     calls / len(buffers) calls that share a buffer. expected 0: nothing is compared.
/// Before each batch, outside the clock, every buffer is filled by a copy of the input and the ranks meet at a
/// barrier; afterwards every element of every result is compared bit by bit. The first num_warm batches are
/// checked and not reported. Throws as Communicator::run.
void bind_timing(pybind11::module_& m);

}  // namespace dcomm
