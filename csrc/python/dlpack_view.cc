#include "python/dlpack_view.h"

#include <cstdint>

#include "base/dtype.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace dcomm {

namespace {

/// -1: none of ours.
int dtype_of(const DLDataType& type) {
  if (type.lanes != 1) return -1;
  constexpr int kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6;
  const auto known = [&](DType dtype) { return static_cast<int>(dtype); };
  switch (type.code * 256 + type.bits) {
    case kFloat * 256 + 32:
      return known(DType::kF32);
    case kFloat * 256 + 16:
      return known(DType::kF16);
    case kFloat * 256 + 64:
      return known(DType::kF64);
    case kBfloat * 256 + 16:
      return known(DType::kBF16);
    case kInt * 256 + 32:
      return known(DType::kI32);
    case kInt * 256 + 64:
      return known(DType::kI64);
    case kInt * 256 + 8:
      return known(DType::kI8);
    case kUInt * 256 + 8:
      return known(DType::kU8);
    case kBool * 256 + 8:
      return known(DType::kBool);
    case kComplex * 256 + 64:
      return known(DType::kC64);
    case kComplex * 256 + 128:
      return known(DType::kC128);
    default:
      return -1;
  }
}

bool is_contiguous(const DLTensor& tensor) {
  if (tensor.strides == nullptr) return true;
  int64_t expected = 1;
  bool contiguous = true;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    if (tensor.shape[i] == 0) return true;
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) contiguous = false;
    expected *= tensor.shape[i];
  }
  return contiguous;
}

/// The capsule is read, not taken: it still frees what it owns.
py::tuple dlpack_view(const py::object& capsule) {
  const DLTensor* tensor = nullptr;
  bool writable = true;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
    const auto* const managed =
        static_cast<const DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->version.major != 1) {
      throw py::value_error("got DLPack version " + std::to_string(managed->version.major) + ": expected 1");
    }
    tensor = &managed->tensor;
    writable = (managed->flags & kDLReadOnly) == 0;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
    tensor = static_cast<const DLTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));  // its first member
  } else {
    throw py::type_error("expected a DLPack capsule that was not used before");
  }
  py::tuple shape(tensor->ndim);
  int64_t count = 1;
  for (int i = 0; i < tensor->ndim; ++i) {
    shape[static_cast<size_t>(i)] = py::int_(tensor->shape[i]);
    count *= tensor->shape[i];
  }
  return py::make_tuple(reinterpret_cast<uintptr_t>(tensor->data) + tensor->byte_offset, count, dtype_of(tensor->dtype),
                        is_contiguous(*tensor), writable, shape);
}

}  // namespace

void bind_dlpack_view(py::module_& m) { m.def("dlpack_view", &dlpack_view, py::arg("capsule")); }

}  // namespace dcomm
