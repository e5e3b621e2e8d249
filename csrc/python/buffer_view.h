// Address, count and dtype of anything that exports a buffer (NumPy first of all). Floor: python.
#pragma once

#include <pybind11/pybind11.h>

namespace dcomm {

/// The code of a native struct-module format; -1: not one of dcomm's types.
int dtype_of_format(const char* format, Py_ssize_t itemsize);

/// Binds buffer_view(obj) -> (address, count, dtype code, contiguous, writable, shape, format); dtype code -1: not one
/// of dcomm's types.
void bind_buffer_view(pybind11::module_& m);

}  // namespace dcomm
