// The checks as a test-only extension module, driven from pytest.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/mutation.h"
#include "check.h"

namespace py = pybind11;

PYBIND11_MODULE(_dcomm_checks, m) {
  m.doc() = "C++ checks of dcomm; for its own tests only.";
  m.def("names", [] {
    std::vector<std::string> names;
    for (const auto& check : dcomm::checks::cases()) names.emplace_back(check.name);
    return names;
  });
  m.def(
      "run",
      [](const std::string& name) {
        for (const auto& check : dcomm::checks::cases()) {
          if (name == check.name) {
            py::gil_scoped_release release;
            check.run();
            return;
          }
        }
        throw py::key_error("no check named " + name);
      },
      py::arg("name"));
}
