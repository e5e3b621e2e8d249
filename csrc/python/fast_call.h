// The short way in for small messages: a plain C function bound to one communicator. Floor: python.
//
// pybind11's dispatch of nine arguments costs about a microsecond, a small all-reduce a tenth of that.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "comm/communicator.h"

namespace dcomm {

/// A callable for synchronous in-place all-reduces with the communicator's timeout; wire -1: the array's dtype.
///   call(array, op, algo, wire)                    array: exports a C-contiguous writable buffer
///   call(address, count, dtype, op, algo, wire)
/// Returns True when done, False when the array needs the long way. Throws as Communicator::run.
pybind11::object make_fast_all_reduce(std::shared_ptr<Communicator> comm);

/// Raises the Python exception for `code` (defined in module.cc, which knows the classes).
[[noreturn]] void raise_python(ErrorCode code, const std::string& message);

/// What a wait of this thread calls every 50 ms: Python's signal handlers, in the main thread only.
InterruptCheck signal_check();

/// Runs `call` with the GIL released; throws py::error_already_set on failure.
void run_released(Communicator& comm, const CollectiveCall& call, int64_t timeout_ns);

}  // namespace dcomm
