#include "python/fast_call.h"

#include "python/buffer_view.h"

namespace py = pybind11;

namespace dcomm {

namespace {

constexpr const char* kCapsuleName = "dcomm.Communicator";
using Holder = std::shared_ptr<Communicator>;

bool read_codes(PyObject* const* args, CollectiveCall& call) {
  call.op = static_cast<ReduceOp>(PyLong_AsLong(args[0]));
  call.algo = static_cast<Algo>(PyLong_AsLong(args[1]));
  const long wire = PyLong_AsLong(args[2]);
  call.wire = wire < 0 ? call.dtype : static_cast<DType>(wire);
  return PyErr_Occurred() == nullptr;
}

/// False: not a plain array of a dtype we know; no error is set.
bool read_array(PyObject* array, CollectiveCall& call) {
  Py_buffer buffer;
  if (PyObject_GetBuffer(array, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE) != 0) {
    PyErr_Clear();
    return false;
  }
  const int dtype = dtype_of_format(buffer.format, buffer.itemsize);
  call.in = buffer.buf;
  call.out = buffer.buf;
  call.dtype = static_cast<DType>(dtype);
  call.count = dtype < 0 ? 0 : static_cast<size_t>(buffer.len / buffer.itemsize);
  PyBuffer_Release(&buffer);  // the caller's reference keeps the array
  return dtype >= 0;
}

bool read_address(PyObject* const* args, CollectiveCall& call) {
  call.in = call.out = PyLong_AsVoidPtr(args[0]);
  call.count = PyLong_AsSize_t(args[1]);
  call.dtype = static_cast<DType>(PyLong_AsLong(args[2]));
  return PyErr_Occurred() == nullptr;
}

PyObject* fast_all_reduce(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
  auto* holder = static_cast<Holder*>(PyCapsule_GetPointer(self, kCapsuleName));
  if (holder == nullptr) return nullptr;
  CollectiveCall call;
  call.collective = Collective::kAllReduce;
  if (num_args == 4) {
    if (!read_array(args[0], call)) Py_RETURN_FALSE;
  } else if (num_args == 6) {
    if (!read_address(args, call)) return nullptr;
  } else {
    PyErr_SetString(PyExc_TypeError, "expected (array, op, algo, wire) or (address, count, dtype, op, algo, wire)");
    return nullptr;
  }
  if (!read_codes(args + num_args - 3, call)) return nullptr;
  try {
    run_released(**holder, call, 0);
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  }
  Py_RETURN_TRUE;
}

PyMethodDef fast_method = {"fast_all_reduce",
                           reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fast_all_reduce)), METH_FASTCALL,
                           "All-reduce in place: (array, op, algo, wire) or (address, count, dtype, op, algo, wire)."};

}  // namespace

py::object make_fast_all_reduce(std::shared_ptr<Communicator> comm) {
  auto holder = std::make_unique<Holder>(std::move(comm));
  py::capsule self(holder.get(), kCapsuleName,
                   [](PyObject* capsule) { delete static_cast<Holder*>(PyCapsule_GetPointer(capsule, kCapsuleName)); });
  holder.release();
  return py::reinterpret_steal<py::object>(PyCFunction_New(&fast_method, self.ptr()));
}

}  // namespace dcomm
