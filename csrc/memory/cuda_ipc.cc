// Windows of ordinary GPU memory with a legacy handle, which names a whole allocation: so each is one.
// Floor: memory.
#include "memory/cuda_window.h"

namespace dcomm {
namespace {

class IpcWindow final : public CudaWindow {
 public:
  IpcWindow(const CudaDriver& driver, bool imported) : CudaWindow(driver, imported) {}
  ~IpcWindow() override {
    if (address_ == 0) return;
    if (imported_) {
      driver_.ipc_close(address_);
    } else if (!kept_) {
      driver_.deallocate(address_);
    }
  }

  void make(size_t num_bytes) {
    num_bytes_ = num_bytes;
    check(driver_.allocate(num_bytes, &address_), "cuMemAlloc", num_bytes_);
    check(driver_.zero(address_, num_bytes), "zeroing it", num_bytes_);
  }

  void import(const CudaWindowHandle& handle) {
    num_bytes_ = handle.mapped_bytes;
    check(driver_.ipc_open(handle.ipc, &address_), "cuIpcOpenMemHandle", num_bytes_);
  }

  CudaWindowHandle export_handle() const override {
    CudaWindowHandle handle;
    handle.kind = CudaWindowKind::kIpc;
    handle.mapped_bytes = num_bytes_;
    check(driver_.ipc_export(address_, handle.ipc), "cuIpcGetMemHandle", num_bytes_);
    return handle;
  }

  void keep_forever() override { kept_ = true; }

 private:
  size_t num_bytes_ = 0;
  bool kept_ = false;
};

}  // namespace

std::unique_ptr<CudaWindow> make_ipc_window(const CudaDriver& driver, size_t num_bytes) {
  auto window = std::make_unique<IpcWindow>(driver, false);
  window->make(num_bytes);
  return window;
}

std::unique_ptr<CudaWindow> import_ipc_window(const CudaDriver& driver, const CudaWindowHandle& handle) {
  auto window = std::make_unique<IpcWindow>(driver, true);
  window->import(handle);
  return window;
}

}  // namespace dcomm
