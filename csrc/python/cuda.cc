#include "python/cuda.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "launch/cuda_loader.h"
#include "python/dlpack_capsule.h"
#include "python/dlpack_view.h"
#include "python/fast_call.h"

namespace py = pybind11;

namespace dcomm {

namespace {

/// root: of a message, the other rank. nullptr unless async_op.
std::shared_ptr<CudaWork> run_cuda(Communicator& comm, int kind, int device, uintptr_t in, uintptr_t out, size_t count,
                                   int dtype, int wire, int op, int algo, int root, int tag, uintptr_t stream,
                                   int64_t timeout_ns, bool collected, bool async_op) {
  CudaRankCall call;
  call.device = device;
  call.call.collective = static_cast<Collective>(kind);
  call.call.in = reinterpret_cast<const void*>(in);
  call.call.out = reinterpret_cast<void*>(out);
  call.call.count = count;
  call.call.dtype = static_cast<DType>(dtype);
  call.call.wire = static_cast<DType>(wire);
  call.call.op = static_cast<ReduceOp>(op);
  call.call.algo = call.call.collective == Collective::kAllReduce ? static_cast<Algo>(algo) : Algo::kFlat;
  call.call.root = root;
  call.call.tag = tag;
  call.stream = reinterpret_cast<void*>(stream);
  call.timeout_ns = timeout_ns;
  call.interrupted = signal_check();
  if (async_op) call.work = std::make_shared<CudaWork>(timeout_ns > 0 ? timeout_ns : comm.settings().timeout_ns);
  translate_released([&] { comm.run_cuda(call, collected); });
  return call.work;
}

/// A region in the memory of a GPU: no buffer that the host could read.
class CudaRegion {
 public:
  explicit CudaRegion(std::shared_ptr<Region> region) : region_(std::move(region)) {}
  /// Who lets go of such memory last waits for the GPU: never with the GIL held.
  ~CudaRegion() {
    const py::gil_scoped_release release;
    region_.reset();
  }
  CudaRegion(const CudaRegion&) = delete;
  CudaRegion& operator=(const CudaRegion&) = delete;

  uintptr_t address() const { return reinterpret_cast<uintptr_t>(region_->data); }
  size_t nbytes() const { return region_->nbytes; }

 private:
  std::shared_ptr<Region> region_;
};

std::unique_ptr<CudaRegion> allocate_on_gpu(Communicator& comm, int device, size_t nbytes, int64_t timeout_ns) {
  std::shared_ptr<Region> region;
  const InterruptCheck check = signal_check();
  translate_released([&] { region = comm.allocate_on_gpu(device, nbytes, timeout_ns, check); });
  return std::make_unique<CudaRegion>(std::move(region));
}

}  // namespace

void bind_cuda(py::module_& m, py::class_<Communicator, std::shared_ptr<Communicator>> bound) {
  py::class_<CudaRegion>(m, "CudaRegion")
      .def_property_readonly("address", &CudaRegion::address)
      .def_property_readonly("nbytes", &CudaRegion::nbytes);
  bound.def("collective_cuda", &run_cuda)
      .def("allocate_on_gpu", &allocate_on_gpu)
      .def("end_collecting_cuda", &Communicator::end_collecting_cuda)
      .def("open_cuda", [](Communicator& comm, int device) { translate_released([&] { comm.open_cuda(device); }); })
      .def_property_readonly("cuda_device", &Communicator::cuda_device)
      .def("is_beside", &Communicator::is_beside)
      .def("wait_cuda",
           [](Communicator& comm, const CudaWork& work, int64_t timeout_ns) {
             const InterruptCheck check = signal_check();
             translate_released([&] { comm.wait_cuda(work, timeout_ns, check); });
           })
      .def("expect_cuda",
           [](Communicator& comm, const CudaWork& work, int64_t timeout_ns) {
             const InterruptCheck check = signal_check();
             translate_released([&] { comm.expect_cuda(work, timeout_ns, true, check); });
           })
      .def("order_cuda",
           [](Communicator& comm, const CudaWork& work, uintptr_t stream) {
             const InterruptCheck check = signal_check();
             translate_released([&] { comm.order_cuda(work, reinterpret_cast<void*>(stream), check); });
           })
      .def("withdraw_cuda",
           [](Communicator& comm, const CudaWork& work) {
             bool taken = false;
             translate_released([&] { taken = comm.withdraw_cuda(work); });
             return taken;
           })
      .def("check_cuda_reports", [](Communicator& comm) { translate_released([&] { comm.check_cuda_reports(); }); })
      .def("synchronize_cuda", [](Communicator& comm, int64_t timeout_ns) {
        translate_released([&] { comm.synchronize_cuda(timeout_ns); });
      });
  py::class_<CudaWork, std::shared_ptr<CudaWork>>(m, "CudaWork")
      .def_property_readonly("state",
                             [](const CudaWork& work) {
                               DcommCudaEventState state{};
                               translate_released([&] { state = work.state(); });
                               return static_cast<int>(state);
                             })
      .def_property_readonly("timeout_ns", &CudaWork::timeout_ns);
  m.def("cuda_device_count", &cuda_device_count);
  m.def("cuda_pointer_device",
        [](uintptr_t address) { return cuda_pointer_device(reinterpret_cast<const void*>(address)); });
  m.def("order_cuda_streams", [](int device, uintptr_t before, uintptr_t after) {
    order_cuda_streams(device, reinterpret_cast<void*>(before), reinterpret_cast<void*>(after));
  });
  m.def("cuda_launch_floor", [](int device) {
    CudaLaunchFloor floor{};
    translate_released([&] { floor = measure_cuda_launch_floor(device); });
    return py::make_tuple(floor.empty_launch_us, floor.round_trip_us);
  });
  m.def("_use_cuda_library", &use_cuda_library, py::arg("path"));
  bind_dlpack_view(m);
  bind_dlpack_capsule(m);
}

}  // namespace dcomm
