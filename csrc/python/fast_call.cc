#include "python/fast_call.h"

namespace py = pybind11;

namespace dcomm {

namespace {

constexpr const char* kCapsuleName = "dcomm.fast";

struct FastState {
  std::shared_ptr<Communicator> comm;
  FastTables tables;
};

/// Whether both have a shape, and the same; no error is set.
bool have_one_shape(PyObject* a, PyObject* b) {
  static PyObject* const name = PyUnicode_InternFromString("shape");
  PyObject* const shapes[2] = {PyObject_GetAttr(a, name), PyObject_GetAttr(b, name)};
  const bool same =
      shapes[0] != nullptr && shapes[1] != nullptr && PyObject_RichCompareBool(shapes[0], shapes[1], Py_EQ) == 1;
  Py_XDECREF(shapes[0]);
  Py_XDECREF(shapes[1]);
  PyErr_Clear();
  return same;
}

/// Where the result of `array` may go: False, with no error, for what the long way refuses or copies.
bool read_out(const ArrayTypes& types, PyObject* x, const PlainArray& array, PyObject* out, void** data) {
  PlainArray target;
  if (!read_plain_array(types, out, &target) || target.is_tensor != array.is_tensor || target.dtype != array.dtype ||
      target.count != array.count || !have_one_shape(x, out)) {
    return false;
  }
  const auto from = reinterpret_cast<uintptr_t>(array.data);
  const auto to = reinterpret_cast<uintptr_t>(target.data);
  const size_t nbytes = array.count * dtype_bytes(array.dtype);
  *data = target.data;
  return from == to || from + nbytes <= to || to + nbytes <= from;
}

/// False: take the long way; no error is set.
bool read_call(const FastTables& tables, PyObject* const* args, CollectiveCall& call) {
  PyObject* const x = args[0];
  PyObject* const out = args[1];
  long op = 0;
  long algo = 0;
  long wire = -1;
  if (!look_up(tables.op_codes, args[2], &op) || !look_up(tables.algo_codes, args[3], &algo) ||
      (args[4] != Py_None && !look_up(tables.wire_codes, args[4], &wire))) {
    return false;
  }
  PlainArray array;
  if (!read_plain_array(tables.types, x, &array)) return false;
  call.in = array.data;
  void* target = array.data;
  if (out != Py_None && !read_out(tables.types, x, array, out, &target)) return false;
  call.out = target;
  call.count = array.count;
  call.dtype = array.dtype;
  call.op = static_cast<ReduceOp>(op);
  call.algo = static_cast<Algo>(algo);
  call.wire = wire < 0 ? call.dtype : static_cast<DType>(wire);
  return true;
}

/// Reads the arguments of `method` and hands the call to `start`, which gives the result.
template <class F>
PyObject* with_call(PyObject* self, PyObject* const* args, Py_ssize_t num_args, F&& start) {
  auto* state = static_cast<FastState*>(PyCapsule_GetPointer(self, kCapsuleName));
  if (state == nullptr) return nullptr;
  if (num_args != 5) {
    PyErr_SetString(PyExc_TypeError, "expected (array, out, op, algo, wire_dtype)");
    return nullptr;
  }
  CollectiveCall call;
  call.collective = Collective::kAllReduce;
  if (!read_call(state->tables, args, call)) Py_RETURN_FALSE;
  try {
    return start(*state->comm, call);
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
}

PyObject* fast_all_reduce(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
  return with_call(self, args, num_args, [](Communicator& comm, const CollectiveCall& call) {
    run_released(comm, call, 0);
    return Py_NewRef(Py_True);
  });
}

PyObject* fast_all_reduce_async(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
  return with_call(self, args, num_args, [](Communicator& comm, const CollectiveCall& call) {
    const std::shared_ptr<Work> work = enqueue_released(comm, call, 0);
    if (work->done() && !work->error()) return Py_NewRef(Py_True);
    return py::cast(work).release().ptr();
  });
}

PyMethodDef methods[] = {
    {"fast_all_reduce", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_all_reduce)), METH_FASTCALL,
     "All-reduce: (array, out or None, op, algo, wire_dtype)."},
    {"fast_all_reduce_async", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_all_reduce_async)),
     METH_FASTCALL, "All-reduce, without waiting for it: (array, out or None, op, algo, wire_dtype)."},
};

}  // namespace

py::object make_fast_all_reduce(std::shared_ptr<Communicator> comm, const FastTables& tables, bool is_async) {
  auto state = std::make_unique<FastState>(FastState{std::move(comm), tables});
  py::capsule self(state.get(), kCapsuleName, [](PyObject* capsule) {
    delete static_cast<FastState*>(PyCapsule_GetPointer(capsule, kCapsuleName));
  });
  state.release();
  return py::reinterpret_steal<py::object>(PyCFunction_New(&methods[is_async ? 1 : 0], self.ptr()));
}

}  // namespace dcomm
