#include "python/fast_call.h"

#include "python/buffer_view.h"

namespace py = pybind11;

namespace dcomm {

namespace {

constexpr const char* kCapsuleName = "dcomm.fast";

struct FastState {
  std::shared_ptr<Communicator> comm;
  FastTables tables;
};

/// The number that `table` has for `key`; false: none, or a key that cannot be one. No error is set.
bool look_up(const py::dict& table, PyObject* key, long* value) {
  PyObject* found = PyDict_GetItemWithError(table.ptr(), key);
  if (found == nullptr) {
    PyErr_Clear();
    return false;
  }
  *value = PyLong_AsLong(found);
  return true;
}

/// False: not a plain writable array of a dtype we know; no error is set.
bool read_buffer(PyObject* array, CollectiveCall& call) {
  Py_buffer buffer;
  if (PyObject_GetBuffer(array, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE) != 0) {
    PyErr_Clear();
    return false;
  }
  const int dtype = dtype_of_format(buffer.format, buffer.itemsize);
  call.in = call.out = buffer.buf;
  call.dtype = static_cast<DType>(dtype);
  call.count = dtype < 0 ? 0 : static_cast<size_t>(buffer.len / buffer.itemsize);
  PyBuffer_Release(&buffer);  // the caller's reference keeps the array
  return dtype >= 0;
}

/// Names of a tensor's members, made once.
struct TensorNames {
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* numel = PyUnicode_InternFromString("numel");
  PyObject* is_contiguous = PyUnicode_InternFromString("is_contiguous");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* is_conj = PyUnicode_InternFromString("is_conj");
};

PyObject* call_method(PyObject* object, PyObject* name) {
  return PyObject_VectorcallMethod(name, &object, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
}

/// Whether object.name() is `wanted`; false on any error too, which stays set.
bool answers(PyObject* object, PyObject* name, PyObject* wanted) {
  PyObject* answer = call_method(object, name);
  Py_XDECREF(answer);  // True and False live on
  return answer == wanted;
}

bool read_number(PyObject* object, PyObject* name, size_t* value) {
  PyObject* number = call_method(object, name);
  if (number == nullptr) return false;
  *value = PyLong_AsSize_t(number);
  Py_DECREF(number);
  return PyErr_Occurred() == nullptr;
}

/// As read_buffer, but an error may be set: of a sparse tensor, for one.
bool read_tensor(PyObject* tensor, const py::dict& torch_codes, CollectiveCall& call) {
  static const TensorNames names;
  PyObject* is_cpu = PyObject_GetAttr(tensor, names.is_cpu);
  Py_XDECREF(is_cpu);
  if (is_cpu != Py_True) return false;
  PyObject* torch_dtype = PyObject_GetAttr(tensor, names.dtype);
  if (torch_dtype == nullptr) return false;
  long dtype = -1;
  const bool known = look_up(torch_codes, torch_dtype, &dtype);
  Py_DECREF(torch_dtype);
  if (!known || !answers(tensor, names.is_contiguous, Py_True)) return false;
  call.dtype = static_cast<DType>(dtype);
  // Views that negate or conjugate lazily exist of float and complex tensors.
  if (!is_integer(call.dtype) && !answers(tensor, names.is_neg, Py_False)) return false;
  if (is_complex(call.dtype) && !answers(tensor, names.is_conj, Py_False)) return false;
  size_t address = 0;
  if (!read_number(tensor, names.data_ptr, &address) || !read_number(tensor, names.numel, &call.count)) return false;
  call.in = call.out = reinterpret_cast<void*>(address);
  return true;
}

/// False: take the long way; no error is set.
bool read_call(const FastTables& tables, PyObject* const* args, CollectiveCall& call) {
  long op = 0;
  long algo = 0;
  long wire = -1;
  long kind = 0;
  if (!look_up(tables.op_codes, args[1], &op) || !look_up(tables.algo_codes, args[2], &algo) ||
      (args[3] != Py_None && !look_up(tables.wire_codes, args[3], &wire)) ||
      !look_up(tables.kinds, reinterpret_cast<PyObject*>(Py_TYPE(args[0])), &kind)) {
    return false;
  }
  const bool is_plain = static_cast<ArrayKind>(kind) == ArrayKind::kBuffer
                            ? read_buffer(args[0], call)
                            : read_tensor(args[0], tables.torch_codes, call);
  if (!is_plain) {
    PyErr_Clear();
    return false;
  }
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
