// Recorded schedules for Python: pictures, simulators. Floor: python.
#pragma once

#include <pybind11/pybind11.h>

namespace dcomm {

void bind_schedule(pybind11::module_& m);

}  // namespace dcomm
