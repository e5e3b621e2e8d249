#include "python/dlpack_capsule.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "python/dlpack.h"

namespace py = pybind11;

namespace dcomm {

namespace {

/// What the tensor refers to; it lives until the consumer says so.
struct Owned {
  py::object owner;
  std::vector<int64_t> shape;
};

/// Any thread of the consumer's.
void drop(void* manager) {
  const py::gil_scoped_acquire acquire;
  delete static_cast<Owned*>(manager);
}

DLDataType type_of(DType dtype) {
  const auto bits = static_cast<uint8_t>(8 * dtype_bytes(dtype));
  switch (dtype) {
    case DType::kBF16:
      return {4, bits, 1};
    case DType::kI32:
    case DType::kI64:
    case DType::kI8:
      return {0, bits, 1};
    case DType::kU8:
      return {1, bits, 1};
    case DType::kBool:
      return {6, bits, 1};
    case DType::kC64:
    case DType::kC128:
      return {5, bits, 1};
    default:
      return {2, bits, 1};
  }
}

template <class Managed>
void free_managed(Managed* managed) {
  drop(managed->manager);
  delete managed;
}

/// One that nobody has used: it is renamed when it is.
template <class Managed>
void free_capsule(PyObject* capsule, const char* name) {
  if (PyCapsule_IsValid(capsule, name) == 0) return;
  free_managed(static_cast<Managed*>(PyCapsule_GetPointer(capsule, name)));
}

template <class Managed>
py::object make_capsule(const DLTensor& tensor, std::unique_ptr<Owned> owned, const char* name,
                        PyCapsule_Destructor destructor) {
  auto managed = std::make_unique<Managed>();
  managed->tensor = tensor;
  managed->manager = owned.get();
  managed->deleter = &free_managed<Managed>;
  if constexpr (std::is_same_v<Managed, DLManagedTensorVersioned>) {
    managed->version = {1, 0};
    managed->flags = 0;
  }
  PyObject* const capsule = PyCapsule_New(managed.get(), name, destructor);
  if (capsule == nullptr) throw py::error_already_set();
  static_cast<void>(managed.release());
  static_cast<void>(owned.release());
  return py::reinterpret_steal<py::object>(capsule);
}

py::object dlpack_capsule(py::object owner, uintptr_t address, std::vector<int64_t> shape, int dtype, int device,
                          bool versioned) {
  auto owned = std::make_unique<Owned>(Owned{std::move(owner), std::move(shape)});
  const DLTensor tensor{reinterpret_cast<void*>(address),
                        {kDLCuda, device},
                        static_cast<int32_t>(owned->shape.size()),
                        type_of(static_cast<DType>(dtype)),
                        owned->shape.data(),
                        nullptr,
                        0};
  if (versioned) {
    return make_capsule<DLManagedTensorVersioned>(
        tensor, std::move(owned), "dltensor_versioned",
        [](PyObject* capsule) { free_capsule<DLManagedTensorVersioned>(capsule, "dltensor_versioned"); });
  }
  return make_capsule<DLManagedTensor>(tensor, std::move(owned), "dltensor",
                                       [](PyObject* capsule) { free_capsule<DLManagedTensor>(capsule, "dltensor"); });
}

}  // namespace

void bind_dlpack_capsule(py::module_& m) { m.def("dlpack_capsule", &dlpack_capsule); }

}  // namespace dcomm
