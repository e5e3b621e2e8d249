#include "python/buffer_view.h"

#include "base/dtype.h"

namespace py = pybind11;

namespace dcomm {

int dtype_of_format(const char* format, Py_ssize_t itemsize) {
  if (format == nullptr) return -1;
  if (*format == '@' || *format == '=' || *format == '<') ++format;
  if (format[0] == 'Z' && format[1] != '\0' && format[2] == '\0') {  // a pair of what follows
    if (format[1] == 'f') return static_cast<int>(DType::kC64);
    return format[1] == 'd' ? static_cast<int>(DType::kC128) : -1;
  }
  if (format[0] == '\0' || format[1] != '\0') return -1;
  switch (format[0]) {
    case 'f':
      return static_cast<int>(DType::kF32);
    case 'e':
      return static_cast<int>(DType::kF16);
    case 'd':
      return static_cast<int>(DType::kF64);
    case 'i':
    case 'l':
    case 'q':
      return itemsize == 4 ? static_cast<int>(DType::kI32) : itemsize == 8 ? static_cast<int>(DType::kI64) : -1;
    case 'b':
      return static_cast<int>(DType::kI8);
    case 'B':
      return static_cast<int>(DType::kU8);
    case '?':
      return static_cast<int>(DType::kBool);
    default:
      return -1;
  }
}

namespace {

py::tuple buffer_view(const py::object& array) {
  Py_buffer view;
  if (PyObject_GetBuffer(array.ptr(), &view, PyBUF_RECORDS_RO) != 0) throw py::error_already_set();
  const int dtype = dtype_of_format(view.format, view.itemsize);
  const auto address = reinterpret_cast<uintptr_t>(view.buf);
  const Py_ssize_t count = view.itemsize == 0 ? 0 : view.len / view.itemsize;
  const bool contiguous = PyBuffer_IsContiguous(&view, 'C') != 0;
  py::tuple shape(view.ndim);
  for (int i = 0; i < view.ndim; ++i) shape[static_cast<size_t>(i)] = py::int_(view.shape[i]);
  py::tuple result = py::make_tuple(address, count, dtype, contiguous, view.readonly == 0, shape,
                                    view.format == nullptr ? "" : view.format);
  // The caller keeps `array` alive; holding the view as well would only cost a second object.
  PyBuffer_Release(&view);
  return result;
}

}  // namespace

void bind_buffer_view(py::module_& m) { m.def("buffer_view", &buffer_view, py::arg("array")); }

}  // namespace dcomm
