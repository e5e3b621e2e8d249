#include "python/bucket.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "bucket/chunk_table.h"
#include "bucket/plan.h"
#include "launch/cuda_list.h"
#include "launch/host_pack.h"
#include "python/array_reader.h"
#include "python/fast_call.h"
#include "python/releasing.h"

namespace py = pybind11;

namespace dcomm {

namespace {

std::vector<size_t> sizes_of(const std::vector<int64_t>& numbers, const char* what) {
  std::vector<size_t> sizes;
  for (const int64_t number : numbers) {
    DCOMM_CHECK(number >= 0, ErrorCode::kInvalidArgument, "plan_buckets: got ", what, " ", number,
                "; it is at least 0");
    sizes.push_back(static_cast<size_t>(number));
  }
  return sizes;
}

std::vector<DType> dtypes_of(const std::vector<int64_t>& codes) {
  std::vector<DType> dtypes;
  for (const int64_t code : codes) {
    DCOMM_CHECK(code >= 0 && code < kNumDTypes, ErrorCode::kInvalidArgument, "plan_buckets: got dtype code ", code,
                "; codes are 0 to ", kNumDTypes - 1);
    dtypes.push_back(static_cast<DType>(code));
  }
  return dtypes;
}

/// By bucket: (dtype, count, [(index, offset), ...]).
py::list plan(const std::vector<int64_t>& counts, const std::vector<int64_t>& dtypes, const std::vector<int64_t>& order,
              int64_t bucket_bytes, int64_t first_bucket_bytes) {
  const std::vector<size_t> limits = sizes_of({bucket_bytes, first_bucket_bytes}, "a limit of");
  py::list buckets;
  for (const PlannedBucket& bucket : plan_buckets(sizes_of(counts, "count"), dtypes_of(dtypes),
                                                  sizes_of(order, "order entry"), {limits[0], limits[1]})) {
    py::list arrays;
    for (const PlannedArray& array : bucket.arrays) arrays.append(py::make_tuple(array.index, array.offset));
    buckets.append(py::make_tuple(static_cast<int>(bucket.dtype), bucket.count, arrays));
  }
  return buckets;
}

/// What a dcomm.Bucket is made of: its arrays, and where they were when it was made.
struct ArrayList {
  py::tuple arrays;
  std::vector<size_t> tensors;  // those that could move
  std::unique_ptr<ChunkTable> table;
  bool is_writable = true;
};

/// describe(index, array) -> (address, count, dtype code, writable) answers for arrays of types not seen before, or
/// raises what is wrong with them.
std::unique_ptr<ArrayList> make_list(const py::tuple& arrays, const py::dict& kinds, const py::dict& torch_codes,
                                     const py::function& describe) {
  const ArrayTypes types{kinds, torch_codes};
  auto list = std::make_unique<ArrayList>();
  list->arrays = arrays;
  std::vector<ChunkTable::Array> found;
  DType dtype = DType::kF32;
  for (size_t i = 0; i < arrays.size(); ++i) {
    const py::object item = arrays[i];
    PlainArray array;
    if (!read_plain_array(types, item.ptr(), &array)) {
      const auto [address, count, code, writable] = describe(i, item).cast<std::tuple<uintptr_t, size_t, int, bool>>();
      array = {reinterpret_cast<void*>(address), count, static_cast<DType>(code), py::hasattr(item, "data_ptr")};
      list->is_writable = list->is_writable && writable;
    }
    if (i == 0) dtype = array.dtype;
    DCOMM_CHECK(array.dtype == dtype, ErrorCode::kInvalidArgument, "array ", i, " of the bucket is ",
                dtype_name(array.dtype), ", array 0 ", dtype_name(dtype),
                ": expected arrays of one dtype; make a Bucket for each dtype");
    if (array.is_tensor) list->tensors.push_back(i);
    found.push_back({array.data, array.count});
  }
  list->table = std::make_unique<ChunkTable>(found, dtype);
  return list;
}

/// A tensor's storage can be replaced (resize_, set_, .data = ...): what was there may be freed memory now.
void check_in_place(const ArrayList& list) {
  for (const size_t index : list.tensors) {
    DCOMM_CHECK(
        tensor_data(PyTuple_GET_ITEM(list.arrays.ptr(), static_cast<Py_ssize_t>(index))) == list.table->data(index),
        ErrorCode::kInvalidArgument, "tensor ", index,
        " of the bucket has other storage than when the Bucket was made; make a new Bucket");
  }
}

void check_target(const ArrayList& list) {
  DCOMM_CHECK(list.is_writable, ErrorCode::kInvalidArgument,
              "an array of the bucket is read-only; pass out=, or a writable array");
  DCOMM_CHECK(!list.table->overlaps_itself(), ErrorCode::kInvalidArgument,
              "arrays of the bucket share memory, so that the result cannot be stored; pass each array once");
}

CollectiveCall lists_call(const ArrayList& source, const ArrayList& target, int wire, int op, int algo, double factor) {
  check_in_place(source);
  if (&target != &source) {
    check_in_place(target);
    DCOMM_CHECK(target.table->dtype() == source.table->dtype() && target.table->count() == source.table->count(),
                ErrorCode::kInvalidArgument, "out has ", target.table->count(), " elements of ",
                dtype_name(target.table->dtype()), ": expected ", source.table->count(), " of ",
                dtype_name(source.table->dtype()), ", as x has; pass such arrays");
    DCOMM_CHECK(target.table->is_same_memory(*source.table) || !target.table->overlaps(*source.table),
                ErrorCode::kInvalidArgument, "x and out overlap in part: pass the same arrays or disjoint ones");
  }
  check_target(target);
  CollectiveCall call;
  call.collective = Collective::kAllReduce;
  call.in_table = source.table.get();
  call.out_table = target.table.get();
  call.count = source.table->count();
  call.dtype = source.table->dtype();
  call.wire = wire < 0 ? call.dtype : static_cast<DType>(wire);
  call.op = static_cast<ReduceOp>(op);
  call.algo = static_cast<Algo>(algo);
  call.factor = factor;
  return call;
}

/// f(arrays, the one array) without the GIL.
template <class F>
void convert(const ArrayList& list, uintptr_t address, size_t nbytes, const F& f) {
  check_in_place(list);
  const ChunkTable one({{reinterpret_cast<void*>(address), nbytes}}, DType::kU8);
  DCOMM_CHECK(!list.table->overlaps(one), ErrorCode::kInvalidArgument,
              "the buffer and the arrays share memory; pass disjoint ones");
  const KernelTable& table = *kernel_table_from_environment();
  const py::gil_scoped_release release;
  f(*list.table, reinterpret_cast<void*>(address), table);
}

void bind_lists(py::module_& m) {
  py::class_<ArrayList>(m, "ArrayList")
      .def(py::init(&make_list), py::arg("arrays"), py::arg("kinds"), py::arg("torch_codes"), py::arg("describe"))
      .def_property_readonly("arrays", [](const ArrayList& list) { return list.arrays; })
      .def_property_readonly("count", [](const ArrayList& list) { return list.table->count(); })
      .def_property_readonly("dtype", [](const ArrayList& list) { return static_cast<int>(list.table->dtype()); });
  m.def("all_reduce_lists", [](Communicator& comm, const ArrayList& source, const ArrayList& target, int wire, int op,
                               int algo, double factor, int64_t timeout_ns) {
    run_released(comm, lists_call(source, target, wire, op, algo, factor), timeout_ns);
  });
  m.def("all_reduce_lists_async", [](Communicator& comm, const ArrayList& source, const ArrayList& target, int wire,
                                     int op, int algo, double factor, int64_t timeout_ns) {
    return releasing(comm.enqueue(lists_call(source, target, wire, op, algo, factor), timeout_ns));
  });
  m.def("pack", [](const ArrayList& list, uintptr_t address, size_t nbytes, int dtype, double scale) {
    convert(list, address, nbytes, [&](const ChunkTable& arrays, void* to, const KernelTable& table) {
      pack_arrays(arrays, to, static_cast<DType>(dtype), scale, table);
    });
  });
  m.def("unpack", [](uintptr_t address, size_t nbytes, int dtype, const ArrayList& list, double scale) {
    check_target(list);
    convert(list, address, nbytes, [&](const ChunkTable& arrays, const void* from, const KernelTable& table) {
      unpack_arrays(from, static_cast<DType>(dtype), arrays, scale, table);
    });
  });
}

std::unique_ptr<CudaArrayList> make_cuda_list(int device, const std::vector<uintptr_t>& addresses,
                                              const std::vector<size_t>& counts, const std::vector<uint64_t>& offsets,
                                              int dtype) {
  DCOMM_CHECK(addresses.size() == counts.size(), ErrorCode::kInvalidArgument, "got ", addresses.size(),
              " addresses and ", counts.size(), " counts; pass one for each array");
  std::vector<ChunkTable::Array> arrays;
  for (size_t i = 0; i < addresses.size(); ++i) arrays.push_back({reinterpret_cast<void*>(addresses[i]), counts[i]});
  return std::make_unique<CudaArrayList>(device, arrays, offsets, static_cast<DType>(dtype));
}

void bind_cuda_lists(py::module_& m) {
  py::class_<CudaArrayList>(m, "CudaArrayList")
      .def(py::init(&make_cuda_list), py::arg("device"), py::arg("addresses"), py::arg("counts"), py::arg("offsets"),
           py::arg("dtype"), py::call_guard<py::gil_scoped_release>())
      .def("pack",
           [](const CudaArrayList& list, uintptr_t whole, int dtype, double scale, uintptr_t stream) {
             list.pack(reinterpret_cast<void*>(whole), static_cast<DType>(dtype), scale,
                       reinterpret_cast<void*>(stream));
           })
      .def("unpack", [](const CudaArrayList& list, uintptr_t whole, int dtype, double scale, uintptr_t stream) {
        list.unpack(reinterpret_cast<void*>(whole), static_cast<DType>(dtype), scale, reinterpret_cast<void*>(stream));
      });
}

}  // namespace

void bind_bucket(py::module_& m) {
  bind_lists(m);
  bind_cuda_lists(m);
  m.def("plan_buckets", &plan, py::arg("counts"), py::arg("dtypes"), py::arg("order"), py::arg("bucket_bytes"),
        py::arg("first_bucket_bytes"));
}

}  // namespace dcomm
