#include "python/bucket.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "bucket/plan.h"

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

}  // namespace

void bind_bucket(py::module_& m) {
  m.def("plan_buckets", &plan, py::arg("counts"), py::arg("dtypes"), py::arg("order"), py::arg("bucket_bytes"),
        py::arg("first_bucket_bytes"));
}

}  // namespace dcomm
