#include "python/timing.h"

#include <pybind11/stl.h>

#include <chrono>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "python/fast_call.h"

namespace py = pybind11;

namespace dcomm {

namespace {

using Clock = std::chrono::steady_clock;
using Buffers = std::vector<std::pair<uintptr_t, uintptr_t>>;

struct Batches {
  const char* inputs;
  const char* expected;
  size_t num_offsets;
  int calls;
  int batches;
  int num_warm;
};

struct Timed {
  std::vector<double> us;
  size_t num_wrong = 0;
};

size_t count_wrong(const char* found, const char* right, size_t count, size_t item_bytes) {
  if (std::memcmp(found, right, count * item_bytes) == 0) return 0;
  size_t wrong = 0;
  for (size_t i = 0; i < count; ++i) {
    wrong += std::memcmp(found + i * item_bytes, right + i * item_bytes, item_bytes) != 0 ? 1 : 0;
  }
  return wrong;
}

Timed time_batches(Communicator& comm, const std::vector<CollectiveCall>& calls, const Batches& plan,
                   InterruptCheck check) {
  Timed timed;
  const CollectiveCall& first = calls.front();
  const size_t item_bytes = dtype_bytes(first.dtype);
  for (int batch = 0; batch < plan.num_warm + plan.batches; ++batch) {
    const size_t offset = static_cast<size_t>(batch) % plan.num_offsets * item_bytes;
    for (const CollectiveCall& call : calls) {
      std::memcpy(const_cast<void*>(call.in), plan.inputs + offset, first.count * item_bytes);
    }
    comm.run(CollectiveCall{}, 0, check);  // a barrier
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < plan.calls; ++i) comm.run(calls[static_cast<size_t>(i) % calls.size()], 0, check);
    const std::chrono::duration<double, std::micro> elapsed = Clock::now() - start;
    if (batch >= plan.num_warm) timed.us.push_back(elapsed.count() / plan.calls);
    if (plan.expected == nullptr) continue;
    for (const CollectiveCall& call : calls) {
      timed.num_wrong +=
          count_wrong(static_cast<const char*>(call.out), plan.expected + offset, first.count, item_bytes);
    }
  }
  return timed;
}

std::pair<std::vector<double>, size_t> time_all_reduce(Communicator& comm, const Buffers& buffers, uintptr_t inputs,
                                                       uintptr_t expected, size_t num_offsets, size_t count, int dtype,
                                                       int wire, int op, int algo, int calls, int batches,
                                                       int num_warm) {
  if (buffers.empty() || num_offsets == 0 || calls < 1) {
    raise_python({ErrorCode::kInvalidArgument, "expected at least one buffer, one offset and one call"});
  }
  std::vector<CollectiveCall> described;
  for (const auto& [in, out] : buffers) {
    CollectiveCall call;
    call.collective = Collective::kAllReduce;
    call.in = reinterpret_cast<const void*>(in);
    call.out = reinterpret_cast<void*>(out);
    call.count = count;
    call.dtype = static_cast<DType>(dtype);
    call.wire = static_cast<DType>(wire);
    call.op = static_cast<ReduceOp>(op);
    call.algo = static_cast<Algo>(algo);
    described.push_back(call);
  }
  const Batches plan{reinterpret_cast<const char*>(inputs),
                     reinterpret_cast<const char*>(expected),
                     num_offsets,
                     calls,
                     batches,
                     num_warm};
  Timed timed;
  std::optional<Error> failed;
  const InterruptCheck check = signal_check();
  {
    const py::gil_scoped_release release;
    try {
      timed = time_batches(comm, described, plan, check);
    } catch (const Error& error) {
      failed = error;
    }
  }
  if (failed) raise_python(*failed);
  return {std::move(timed.us), timed.num_wrong};
}

}  // namespace

void bind_timing(py::module_& m) {
  m.def("time_all_reduce", &time_all_reduce, py::arg("comm"), py::arg("buffers"), py::arg("inputs"),
        py::arg("expected"), py::arg("num_offsets"), py::arg("count"), py::arg("dtype"), py::arg("wire"), py::arg("op"),
        py::arg("algo"), py::arg("calls"), py::arg("batches"), py::arg("num_warm"));
}

}  // namespace dcomm
