// Windows of memory with a descriptor: create, reserve addresses, map, allow access; backwards at the end.
// Floor: memory.
#include "memory/cuda_window.h"

namespace dcomm {
namespace {

class VmmWindow final : public CudaWindow {
 public:
  VmmWindow(const CudaDriver& driver, bool imported) : CudaWindow(driver, imported) {}
  /// Undoes what was done, in whatever step that ended.
  ~VmmWindow() override {
    if (is_mapped_) driver_.unmap(address_, mapped_bytes_);
    if (address_ != 0) driver_.unreserve(address_, mapped_bytes_);
    if (has_memory_) driver_.release(memory_);
  }

  void make(int device, size_t num_bytes) {
    size_t grain = 0;
    check(driver_.granularity(device, &grain), "cuMemGetAllocationGranularity", num_bytes);
    mapped_bytes_ = (num_bytes + grain - 1) / grain * grain;
    check(driver_.create(device, mapped_bytes_, &memory_), "cuMemCreate", mapped_bytes_);
    has_memory_ = true;
    map(device);
    check(driver_.zero(address_, mapped_bytes_), "zeroing it", mapped_bytes_);
  }

  void import(int device, const CudaWindowHandle& handle) {
    mapped_bytes_ = handle.mapped_bytes;
    check(driver_.import_descriptor(handle.descriptor, &memory_), "cuMemImportFromShareableHandle", mapped_bytes_);
    has_memory_ = true;
    map(device);
  }

  CudaWindowHandle export_handle() const override {
    CudaWindowHandle handle;
    handle.kind = CudaWindowKind::kVmm;
    handle.mapped_bytes = mapped_bytes_;
    check(driver_.export_descriptor(memory_, &handle.descriptor), "cuMemExportToShareableHandle", mapped_bytes_);
    return handle;
  }

 private:
  void map(int device) {
    check(driver_.reserve(mapped_bytes_, &address_), "cuMemAddressReserve", mapped_bytes_);
    check(driver_.map(address_, mapped_bytes_, memory_), "cuMemMap", mapped_bytes_);
    is_mapped_ = true;
    check(driver_.allow_access(address_, mapped_bytes_, device), "cuMemSetAccess", mapped_bytes_);
  }

  size_t mapped_bytes_ = 0;
  uint64_t memory_ = 0;
  bool has_memory_ = false;
  bool is_mapped_ = false;
};

}  // namespace

std::unique_ptr<CudaWindow> make_vmm_window(const CudaDriver& driver, int device, size_t num_bytes) {
  auto window = std::make_unique<VmmWindow>(driver, false);
  window->make(device, num_bytes);
  return window;
}

std::unique_ptr<CudaWindow> import_vmm_window(const CudaDriver& driver, int device, const CudaWindowHandle& handle) {
  auto window = std::make_unique<VmmWindow>(driver, true);
  window->import(device, handle);
  return window;
}

}  // namespace dcomm
