#include "python/fast_call.h"

namespace py = pybind11;

namespace dcomm {

namespace {

constexpr const char* kCapsuleName = "dcomm.fast";

struct FastState {
  std::shared_ptr<Communicator> comm;
  FastTables tables;
};

/// False: take the long way; no error is set.
bool read_call(const FastTables& tables, PyObject* const* args, CollectiveCall& call) {
  long op = 0;
  long algo = 0;
  long wire = -1;
  if (!look_up(tables.op_codes, args[1], &op) || !look_up(tables.algo_codes, args[2], &algo) ||
      (args[3] != Py_None && !look_up(tables.wire_codes, args[3], &wire))) {
    return false;
  }
  PlainArray array;
  if (!read_plain_array(tables.types, args[0], &array)) return false;
  call.in = call.out = array.data;
  call.count = array.count;
  call.dtype = array.dtype;
  call.op = static_cast<ReduceOp>(op);
  call.algo = static_cast<Algo>(algo);
  call.wire = wire < 0 ? call.dtype : static_cast<DType>(wire);
  return true;
}

PyObject* fast_all_reduce(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
  auto* state = static_cast<FastState*>(PyCapsule_GetPointer(self, kCapsuleName));
  if (state == nullptr) return nullptr;
  if (num_args != 4) {
    PyErr_SetString(PyExc_TypeError, "expected (array, op, algo, wire_dtype)");
    return nullptr;
  }
  CollectiveCall call;
  call.collective = Collective::kAllReduce;
  if (!read_call(state->tables, args, call)) Py_RETURN_FALSE;
  try {
    run_released(*state->comm, call, 0);
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
  Py_RETURN_TRUE;
}

PyMethodDef fast_method = {"fast_all_reduce",
                           reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_all_reduce)), METH_FASTCALL,
                           "All-reduce in place: (array, op, algo, wire_dtype)."};

}  // namespace

py::object make_fast_all_reduce(std::shared_ptr<Communicator> comm, const FastTables& tables) {
  auto state = std::make_unique<FastState>(FastState{std::move(comm), tables});
  py::capsule self(state.get(), kCapsuleName, [](PyObject* capsule) {
    delete static_cast<FastState*>(PyCapsule_GetPointer(capsule, kCapsuleName));
  });
  state.release();
  return py::reinterpret_steal<py::object>(PyCFunction_New(&fast_method, self.ptr()));
}

}  // namespace dcomm
