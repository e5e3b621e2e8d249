// Arrays on a GPU for Python: operations of a communicator, and what other libraries' arrays are. Floor: python.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "comm/communicator.h"

namespace dcomm {

void bind_cuda(pybind11::module_& m, pybind11::class_<Communicator, std::shared_ptr<Communicator>> bound);

}  // namespace dcomm
