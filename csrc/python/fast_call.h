// The short way in for small messages: a plain C function bound to one communicator. Floor: python.
//
// pybind11's dispatch of nine arguments costs about a microsecond, a small all-reduce a tenth of that; the lookups
// and attribute reads below cost half of what they do from Python.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <optional>

#include "comm/communicator.h"
#include "python/array_reader.h"

namespace dcomm {

/// What Python has learned so far, in dictionaries that it goes on filling.
struct FastTables {
  pybind11::dict op_codes;    // op argument -> ReduceOp; not premul_sum, which has a factor
  pybind11::dict algo_codes;  // name -> Algo
  pybind11::dict wire_codes;  // wire_dtype argument -> DType; None -> -1
  ArrayTypes types;
};

/// A callable for all-reduces with the communicator's timeout: call(array, out or None, op, algo, wire_dtype). Returns
/// True when done, False when the arguments need the long way, which also explains what is wrong with them; with
/// is_async a Work where it is not done yet or has failed, and the arrays must live until it is over. Throws as
/// Communicator::run, or enqueue.
pybind11::object make_fast_all_reduce(std::shared_ptr<Communicator> comm, const FastTables& tables, bool is_async);

/// Raises the Python exception for `error` (defined in module.cc, which knows the classes).
[[noreturn]] void raise_python(const Error& error);

/// Runs f without the GIL; its Error becomes the Python exception once the GIL is back.
template <class F>
void translate_released(F&& f) {
  std::optional<Error> failed;
  {
    const pybind11::gil_scoped_release release;
    try {
      f();
      return;
    } catch (const Error& error) {
      failed = error;
    }
  }
  raise_python(*failed);
}

/// What a wait of this thread calls every 50 ms: Python's signal handlers, in the main thread only.
InterruptCheck signal_check();

/// Runs `call` with the GIL released; throws py::error_already_set on failure.
int run_released(Communicator& comm, const CollectiveCall& call, int64_t timeout_ns);
/// The same for Communicator::enqueue; the handle is for Python.
std::shared_ptr<Work> enqueue_released(Communicator& comm, const CollectiveCall& call, int64_t timeout_ns);

}  // namespace dcomm
