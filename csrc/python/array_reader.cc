#include "python/array_reader.h"

#include "python/buffer_view.h"

namespace py = pybind11;

namespace dcomm {

bool look_up(const py::dict& table, PyObject* key, long* value) {
  PyObject* found = PyDict_GetItemWithError(table.ptr(), key);
  if (found == nullptr) {
    PyErr_Clear();
    return false;
  }
  *value = PyLong_AsLong(found);
  return true;
}

namespace {

/// False: not a plain writable array of a dtype we know; no error is set.
bool read_buffer(PyObject* array, PlainArray& found) {
  Py_buffer buffer;
  if (PyObject_GetBuffer(array, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE) != 0) {
    PyErr_Clear();
    return false;
  }
  const int dtype = dtype_of_format(buffer.format, buffer.itemsize);
  found.data = buffer.buf;
  found.dtype = static_cast<DType>(dtype);
  found.count = dtype < 0 ? 0 : static_cast<size_t>(buffer.len / buffer.itemsize);
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

const TensorNames& tensor_names() {
  static const TensorNames names;
  return names;
}

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
bool read_tensor(PyObject* tensor, const py::dict& torch_codes, PlainArray& found) {
  const TensorNames& names = tensor_names();
  PyObject* is_cpu = PyObject_GetAttr(tensor, names.is_cpu);
  Py_XDECREF(is_cpu);
  if (is_cpu != Py_True) return false;
  PyObject* torch_dtype = PyObject_GetAttr(tensor, names.dtype);
  if (torch_dtype == nullptr) return false;
  long dtype = -1;
  const bool known = look_up(torch_codes, torch_dtype, &dtype);
  Py_DECREF(torch_dtype);
  if (!known || !answers(tensor, names.is_contiguous, Py_True)) return false;
  found.dtype = static_cast<DType>(dtype);
  // Views that negate or conjugate lazily exist of float and complex tensors.
  if (!is_integer(found.dtype) && !answers(tensor, names.is_neg, Py_False)) return false;
  if (is_complex(found.dtype) && !answers(tensor, names.is_conj, Py_False)) return false;
  size_t address = 0;
  if (!read_number(tensor, names.data_ptr, &address) || !read_number(tensor, names.numel, &found.count)) return false;
  found.data = reinterpret_cast<void*>(address);
  found.is_tensor = true;
  return true;
}

}  // namespace

bool read_plain_array(const ArrayTypes& types, PyObject* array, PlainArray* found) {
  long kind = 0;
  if (!look_up(types.kinds, reinterpret_cast<PyObject*>(Py_TYPE(array)), &kind)) return false;
  const bool is_plain = static_cast<ArrayKind>(kind) == ArrayKind::kBuffer
                            ? read_buffer(array, *found)
                            : read_tensor(array, types.torch_codes, *found);
  if (!is_plain) PyErr_Clear();
  return is_plain;
}

void* tensor_data(PyObject* tensor) {
  size_t address = 0;
  if (!read_number(tensor, tensor_names().data_ptr, &address)) throw py::error_already_set();
  return reinterpret_cast<void*>(address);
}

}  // namespace dcomm
