// What a wire makes of an array, for Python. Floor: python.
#pragma once

#include <pybind11/pybind11.h>

namespace dcomm {

/// Binds quantize(in, out, count, wire, divisor): addresses of `count` float32; see launch/host_launch.h. The GIL is
/// released.
void bind_quantize(pybind11::module_& m);

}  // namespace dcomm
