// DLPack capsules of arrays in the memory of a GPU, for other libraries. Floor: python.
#pragma once

#include <pybind11/pybind11.h>

namespace dcomm {

void bind_dlpack_capsule(pybind11::module_& m);

}  // namespace dcomm
