#include "python/quantize.h"

#include "launch/host_launch.h"

namespace py = pybind11;

namespace dcomm {

void bind_quantize(py::module_& m) {
  m.def("quantize", [](uintptr_t in, uintptr_t out, size_t count, int wire, int divisor) {
    CollectiveCall call;
    call.in = reinterpret_cast<const void*>(in);
    call.out = reinterpret_cast<void*>(out);
    call.count = count;
    call.wire = static_cast<DType>(wire);
    const KernelTable& table = *kernel_table_from_environment();
    const py::gil_scoped_release release;
    quantize(call, divisor, table);
  });
}

}  // namespace dcomm
