// Bucket plans and lists of arrays for Python. Floor: python.
#pragma once

#include <pybind11/pybind11.h>

namespace dcomm {

void bind_bucket(pybind11::module_& m);

}  // namespace dcomm
