#include "python/schedule.h"

#include "launch/record_launch.h"

namespace py = pybind11;

namespace dcomm {

namespace {

/// By rank: (sends, peer, flow, seq, first element, count) in the order in which the rank does things.
py::list record(int algo, int world_size, size_t count) {
  py::list ranks;
  for (const auto& messages : record_all_reduce(static_cast<Algo>(algo), world_size, count)) {
    py::list steps;
    for (const RecordedMessage& m : messages) {
      steps.append(py::make_tuple(m.sends, m.peer, static_cast<int>(m.flow), m.seq, m.range.offset, m.range.count));
    }
    ranks.append(steps);
  }
  return ranks;
}

}  // namespace

void bind_schedule(py::module_& m) { m.def("record_all_reduce", &record); }

}  // namespace dcomm
