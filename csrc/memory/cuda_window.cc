#include "memory/cuda_window.h"

namespace dcomm {

void CudaWindow::check(int result, const char* step, size_t num_bytes) const {
  if (result == 0) return;
  const char* const text = driver_.error_text(result);
  const char* const remedy =
      result == kCudaResultOutOfMemory
          ? "; free GPU memory, or make windows smaller with DCOMM_CUDA_CHANNELS or DCOMM_CUDA_SLOT_BYTES"
      : imported_ ? "; this GPU may not reach the other's memory: see nvidia-smi topo -p2p r, or use CPU arrays"
                  : "; try DCOMM_CUDA_WINDOWS=ipc on all ranks, or use CPU arrays";
  throw_error(ErrorCode::kCuda, imported_ ? "importing" : "making", " a window of ", num_bytes,
              " bytes in GPU memory: ", step, " failed: ", text == nullptr ? "unknown error" : text, " (", result, ')',
              remedy);
}

std::unique_ptr<CudaWindow> make_cuda_window(const CudaDriver& driver, CudaWindowKind kind, int device,
                                             size_t num_bytes) {
  return kind == CudaWindowKind::kVmm ? make_vmm_window(driver, device, num_bytes) : make_ipc_window(driver, num_bytes);
}

std::unique_ptr<CudaWindow> import_cuda_window(const CudaDriver& driver, int device, const CudaWindowHandle& handle) {
  return handle.kind == CudaWindowKind::kVmm ? import_vmm_window(driver, device, handle)
                                             : import_ipc_window(driver, handle);
}

}  // namespace dcomm
