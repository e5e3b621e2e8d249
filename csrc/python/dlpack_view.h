// What a DLPack capsule says of an array. Floor: python.
#pragma once

#include <pybind11/pybind11.h>

namespace dcomm {

void bind_dlpack_view(pybind11::module_& m);

}  // namespace dcomm
