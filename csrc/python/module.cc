// The extension module dcomm._core: pointers and counts in, typed exceptions out. Floor: python.
//
// Arrays cross as integers (address, element count, dtype code); dcomm/arrays.py knows what an array is. The GIL
// is released while an operation runs. C++ threads never call Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/call_site.h"
#include "comm/communicator.h"
#include "comm/failure_text.h"
#include "comm/fork_guard.h"
#include "python/bucket.h"
#include "python/buffer_view.h"
#include "python/cuda.h"
#include "python/fast_call.h"
#include "python/quantize.h"
#include "python/releasing.h"
#include "python/schedule.h"
#include "python/timing.h"

namespace py = pybind11;

namespace dcomm {
namespace {

/// The Python exception classes, in the order of ErrorCode; set once by initialise().
PyObject* exception_classes[static_cast<size_t>(ErrorCode::kInternal) + 1] = {};

PyObject* exception_class(ErrorCode code) {
  PyObject* found = exception_classes[static_cast<size_t>(code)];
  return found != nullptr ? found : PyExc_RuntimeError;
}

/// With the GIL. The two classes that have attributes for ranks (dcomm/errors.py) get them.
void set_python_error(const Error& error) {
  PyObject* const type = exception_class(error.code());
  const bool has_ranks = error.code() == ErrorCode::kPeerLost || error.code() == ErrorCode::kTimeout;
  if (!has_ranks || error.ranks().empty()) return py::set_error(type, error.what());
  py::list ranks;
  py::list pids;
  for (const NamedRank& one : error.ranks()) {
    ranks.append(one.rank);
    pids.append(one.pid > 0 ? py::object(py::int_(one.pid)) : py::none());
  }
  const int64_t last_seq = error.ranks().front().last_seq;
  const auto text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(error.what(), static_cast<py::ssize_t>(std::strlen(error.what())), "replace"));
  const py::object made =
      py::handle(type)(text, py::arg("ranks") = py::tuple(ranks), py::arg("pids") = py::tuple(pids),
                       py::arg("last_seq") = last_seq >= 0 ? py::object(py::int_(last_seq)) : py::none());
  py::set_error(type, made);
}

/// Only the main thread may run signal handlers.
unsigned long main_thread_ident = 0;

/// dcomm.call_site.call_site; lives as long as the module.
PyObject* call_site_function = nullptr;

/// Called without the GIL, in any thread. A signal handler's exception may be pending: it stays.
std::string find_call_site() {
  if (PyGILState_GetThisThreadState() == nullptr) return "";  // not a thread of Python's
  const py::gil_scoped_acquire acquire;
  const py::error_scope pending;
  try {
    return py::reinterpret_borrow<py::function>(call_site_function)().cast<std::string>();
  } catch (const py::error_already_set&) {
    return "";  // a detail of an error's text, and no error of its own
  }
}

void initialise(const py::dict& by_name, unsigned long main_thread, const py::function& call_site, bool records_calls) {
  main_thread_ident = main_thread;
  call_site_function = py::function(call_site).release().ptr();
  set_call_site_lookup(&find_call_site, records_calls);
  const std::pair<ErrorCode, const char*> names[] = {
      {ErrorCode::kInvalidArgument, "ValueError"},
      {ErrorCode::kPeerLost, "PeerLostError"},
      {ErrorCode::kTimeout, "CollectiveTimeoutError"},
      {ErrorCode::kMismatch, "MismatchError"},
      {ErrorCode::kVersionMismatch, "VersionMismatchError"},
      {ErrorCode::kAborted, "AbortedError"},
      {ErrorCode::kForked, "ForkedProcessError"},
      {ErrorCode::kSharedMemory, "SharedMemoryError"},
      {ErrorCode::kConcurrentUse, "ConcurrentUseError"},
      {ErrorCode::kCuda, "CudaError"},
      {ErrorCode::kInternal, "DcommError"},
  };
  for (const auto& [code, name] : names) {
    exception_classes[static_cast<size_t>(code)] =
        py::object(by_name[name]).release().ptr();  // lives as long as the module
  }
}

/// Runs Python's signal handlers; true when one raised (KeyboardInterrupt). Called without the GIL.
bool signals_raised(void*) {
  const py::gil_scoped_acquire acquire;
  return PyErr_CheckSignals() != 0;
}

template <bool is_async>
py::object fast_all_reduce(const std::shared_ptr<Communicator>& comm, const py::dict& op_codes,
                           const py::dict& algo_codes, const py::dict& wire_codes, const py::dict& kinds,
                           const py::dict& torch_codes) {
  return make_fast_all_reduce(comm, {op_codes, algo_codes, wire_codes, {kinds, torch_codes}}, is_async);
}

CollectiveCall all_reduce_call(uintptr_t in, uintptr_t out, size_t count, int dtype, int wire, int op, int algo) {
  CollectiveCall call;
  call.collective = Collective::kAllReduce;
  call.in = reinterpret_cast<const void*>(in);
  call.out = reinterpret_cast<void*>(out);
  call.count = count;
  call.dtype = static_cast<DType>(dtype);
  call.wire = static_cast<DType>(wire);
  call.op = static_cast<ReduceOp>(op);
  call.algo = static_cast<Algo>(algo);
  return call;
}

std::shared_ptr<const BlockLengths> block_lengths(const py::object& send, const py::object& recv) {
  if (send.is_none() && recv.is_none()) return nullptr;
  return std::make_shared<const BlockLengths>(
      BlockLengths{send.cast<std::vector<size_t>>(), recv.cast<std::vector<size_t>>()});
}

/// Any collective; see CollectiveCall for what count, root and factor mean in each. wire < 0: none.
CollectiveCall collective_call(int kind, uintptr_t in, uintptr_t out, size_t count, int dtype, int wire, int op,
                               int algo, int root, double factor, const py::object& send_lengths,
                               const py::object& recv_lengths) {
  CollectiveCall call = all_reduce_call(in, out, count, dtype, wire < 0 ? dtype : wire, op, algo);
  call.collective = static_cast<Collective>(kind);
  if (call.collective != Collective::kAllReduce && !lends_input_only(call.collective)) call.algo = Algo::kFlat;
  call.root = root;
  call.factor = factor;
  call.lengths = block_lengths(send_lengths, recv_lengths);
  return call;
}

/// kind: Collective::kSend or kRecv; peer: the other rank, of a recv also kAnySource.
CollectiveCall message_call(int kind, uintptr_t address, size_t count, int dtype, int peer, int tag) {
  CollectiveCall call = all_reduce_call(address, address, count, dtype, dtype, 0, static_cast<int>(Algo::kFlat));
  call.collective = static_cast<Collective>(kind);
  call.root = peer;
  call.tag = tag;
  return call;
}

std::shared_ptr<Communicator> connect(int rank, int world_size, const std::string& meeting_key, bool exact,
                                      uint64_t init_counter, uint64_t config_hash, const std::string& version,
                                      double timeout_s, bool force_shm, bool deterministic, uint32_t test_protocol) {
  MeshOptions options;
  options.rank = rank;
  options.world_size = world_size;
  options.meeting_key = meeting_key;
  options.exact = exact;
  options.init_counter = init_counter;
  options.config_hash = config_hash;
  options.package_version = version;
  if (test_protocol != 0) options.protocol_version = test_protocol;
  options.timeout = std::chrono::nanoseconds(static_cast<int64_t>(timeout_s * 1e9));
  options.on_wait = [check = signal_check()] {
    if (check != nullptr && check(nullptr)) throw Error(ErrorCode::kInterrupted, "interrupted during init");
  };
  std::shared_ptr<Communicator> comm;
  translate_released([&] { comm = Communicator::of_processes(options, force_shm, deterministic); });
  return releasing(std::move(comm));
}

std::vector<std::shared_ptr<Communicator>> of_threads(int world_size, bool deterministic) {
  auto comms = Communicator::of_threads(world_size, deterministic);
  for (auto& comm : comms) comm = releasing(std::move(comm));
  return comms;
}

std::shared_ptr<Communicator> split(Communicator& comm, std::optional<int64_t> color, int64_t key, int64_t timeout_ns) {
  std::shared_ptr<Communicator> child;
  const InterruptCheck check = signal_check();
  translate_released([&] { child = comm.split(color, key, timeout_ns, check); });
  return child == nullptr ? nullptr : releasing(std::move(child));
}

std::shared_ptr<Region> allocate(Communicator& comm, size_t nbytes, int64_t timeout_ns) {
  std::shared_ptr<Region> region;
  const InterruptCheck check = signal_check();
  translate_released([&] { region = comm.allocate(nbytes, timeout_ns, check); });
  return region;
}

std::shared_ptr<Region> reserve(Communicator& comm, size_t nbytes, int64_t timeout_ns) {
  std::shared_ptr<Region> region;
  const InterruptCheck check = signal_check();
  translate_released([&] { region = comm.reserve(nbytes, timeout_ns, check); });
  return region;
}

std::shared_ptr<Region> adopt(Communicator& comm, uintptr_t address, size_t nbytes, int64_t timeout_ns) {
  std::shared_ptr<Region> region;
  const InterruptCheck check = signal_check();
  translate_released([&] { region = comm.adopt(reinterpret_cast<void*>(address), nbytes, timeout_ns, check); });
  return region;
}

void bind_region(py::module_& m) {
  py::class_<Region, std::shared_ptr<Region>>(m, "Region", py::buffer_protocol())
      .def_property_readonly("reach_bytes", [](const Region& region) { return region.reach.end - region.reach.begin; })
      .def("commit",
           [](Region& region, size_t begin, size_t end) {
             DCOMM_CHECK(region.reserved != nullptr, ErrorCode::kInvalidArgument,
                         "commit: this region was not reserved, it has its memory");
             translate_released([&] { region.reserved->commit({begin, end}); });
           })
      .def_buffer([](const Region& region) {
        return py::buffer_info(reinterpret_cast<uint8_t*>(region.data), static_cast<py::ssize_t>(region.nbytes));
      });
}

void bind_work(py::module_& m) {
  py::class_<Work, std::shared_ptr<Work>>(m, "Work")
      .def("done", &Work::done)
      .def(
          "wait_for",
          [](const Work& work, double seconds) {
            const py::gil_scoped_release release;
            return work.wait_for(std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9)));
          },
          py::arg("seconds"))
      .def_property_readonly("source", &Work::source)
      .def("open_event", &Work::open_event)
      .def("raise_if_failed", [](const Work& work) {
        if (const std::optional<Error> error = work.error()) raise_python(*error);
      });
}

py::class_<Communicator, std::shared_ptr<Communicator>> bind_communicator(py::module_& m) {
  py::class_<Communicator, std::shared_ptr<Communicator>> bound(m, "Communicator");
  bound.def_static("of_threads", &of_threads, py::arg("world_size"), py::arg("deterministic") = false)
      .def_static("connect", &connect, py::arg("rank"), py::arg("world_size"), py::arg("meeting_key"), py::arg("exact"),
                  py::arg("init_counter"), py::arg("config_hash"), py::arg("version"), py::arg("timeout_s"),
                  py::arg("force_shm"), py::arg("deterministic"), py::arg("test_protocol") = 0)
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("world_size", &Communicator::world_size)
      .def_property_readonly("closed", &Communicator::closed)
      .def_property_readonly("isa", [](const Communicator& comm) { return comm.kernel_table().isa; })
      .def_property_readonly("deterministic", [](const Communicator& comm) { return comm.settings().deterministic; })
      .def_property_readonly("slot_bytes", [](const Communicator& comm) { return comm.settings().slot_bytes; })
      .def_property_readonly("pids", &Communicator::pids)
      .def("lost_ranks",
           [](const Communicator& comm) {
             py::dict lost;
             const std::vector<AbortDetail> exits = comm.exits();
             for (size_t rank = 0; rank < exits.size(); ++rank) {
               if (exits[rank] != AbortDetail::kNone) lost[py::int_(rank)] = exit_text(exits[rank]);
             }
             return lost;
           })
      .def("stats",
           [](const Communicator& comm) {
             const CommunicatorStats stats = comm.stats();
             py::dict wait_us;
             for (int peer = 0; peer < comm.world_size(); ++peer) {
               if (peer == comm.rank()) continue;
               wait_us[py::int_(peer)] = 1e-3 * static_cast<double>(stats.waited_ns[static_cast<size_t>(peer)]);
             }
             py::dict result;
             result["num_operations"] = stats.num_operations;
             result["num_bytes"] = stats.num_bytes;
             result["num_sent_bytes"] = stats.num_sent_bytes;
             result["num_direct"] = stats.num_direct;
             result["wait_us"] = wait_us;
             return result;
           })
      .def("collective",
           [](Communicator& comm, int kind, uintptr_t in, uintptr_t out, size_t count, int dtype, int wire, int op,
              int algo, int root, double factor, const py::object& send_lengths, const py::object& recv_lengths,
              int64_t timeout_ns) {
             run_released(
                 comm,
                 collective_call(kind, in, out, count, dtype, wire, op, algo, root, factor, send_lengths, recv_lengths),
                 timeout_ns);
           })
      .def("collective_async",
           [](Communicator& comm, int kind, uintptr_t in, uintptr_t out, size_t count, int dtype, int wire, int op,
              int algo, int root, double factor, const py::object& send_lengths, const py::object& recv_lengths,
              int64_t timeout_ns) {
             return enqueue_released(
                 comm,
                 collective_call(kind, in, out, count, dtype, wire, op, algo, root, factor, send_lengths, recv_lengths),
                 timeout_ns);
           })
      .def("set_patience", &Communicator::set_patience)
      .def("set_timeout",
           [](Communicator& comm, int64_t timeout_ns) { translate_released([&] { comm.set_timeout(timeout_ns); }); })
      .def("message",
           [](Communicator& comm, int kind, uintptr_t address, size_t count, int dtype, int peer, int tag,
              int64_t timeout_ns) {
             return run_released(comm, message_call(kind, address, count, dtype, peer, tag), timeout_ns);
           })
      .def("message_async",
           [](Communicator& comm, int kind, uintptr_t address, size_t count, int dtype, int peer, int tag,
              int64_t timeout_ns) {
             return releasing(comm.enqueue(message_call(kind, address, count, dtype, peer, tag), timeout_ns));
           })
      .def("split", &split)
      .def("allocate", &allocate)
      .def("reserve", &reserve)
      .def("adopt", &adopt)
      .def("release", [](Communicator& comm, Region& region) { translate_released([&] { comm.release(region); }); })
      .def("fast_all_reduce", &fast_all_reduce<false>)
      .def("fast_all_reduce_async", &fast_all_reduce<true>)
      .def("abort", &Communicator::abort, py::arg("reason") = "")
      .def("leave_note", &Communicator::leave_note)
      .def("set_made_at", &Communicator::set_made_at)
      .def("close", &Communicator::close, py::call_guard<py::gil_scoped_release>())
      .def("leave", &Communicator::leave_now, py::call_guard<py::gil_scoped_release>())
      .def("leave_at_exit", &Communicator::leave_at_exit, py::call_guard<py::gil_scoped_release>())
      .def("_inject_delay",
           [](Communicator& comm, double seconds) { comm.set_test_delay_ns(static_cast<int64_t>(seconds * 1e9)); });
  return bound;
}

}  // namespace

void raise_python(const Error& error) {
  if (error.code() == ErrorCode::kInterrupted && PyErr_Occurred() != nullptr) throw py::error_already_set();
  set_python_error(error);
  throw py::error_already_set();
}

InterruptCheck signal_check() { return PyThread_get_thread_ident() == main_thread_ident ? &signals_raised : nullptr; }

int run_released(Communicator& comm, const CollectiveCall& call, int64_t timeout_ns) {
  const InterruptCheck check = signal_check();
  int source = -1;
  translate_released([&] { source = comm.run(call, timeout_ns, check); });
  return source;
}

std::shared_ptr<Work> enqueue_released(Communicator& comm, const CollectiveCall& call, int64_t timeout_ns) {
  std::shared_ptr<Work> work;
  const InterruptCheck check = signal_check();
  translate_released([&] { work = comm.enqueue(call, timeout_ns, check); });
  return releasing(std::move(work));
}

}  // namespace dcomm

PYBIND11_MODULE(_core, m) {
  using namespace dcomm;
  m.doc() = "C++ core of dcomm; use the dcomm package.";
  m.attr("__version__") = DCOMM_VERSION;
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
      set_python_error(error);
    }
  });
  m.def("initialise", &initialise, py::arg("exceptions"), py::arg("main_thread"), py::arg("call_site"),
        py::arg("records_calls"));
  m.def("in_forked_child", &in_forked_child);
  bind_bucket(m);
  bind_buffer_view(m);
  bind_work(m);
  bind_region(m);
  bind_cuda(m, bind_communicator(m));
  bind_quantize(m);
  bind_schedule(m);
  bind_timing(m);
}
