// A rank's window in GPU memory, made here or imported from another process. Floor: memory (no CUDA header).
//
// cuda_vmm.cc: memory with a descriptor, which stays valid until the last process has unmapped it. cuda_ipc.cc: for
// drivers or machines without, memory of cuMemAlloc with a legacy handle: it must not be freed while others have it
// open. A communicator uses one kind on all its ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/error.h"
#include "memory/cuda_driver.h"

namespace dcomm {

enum class CudaWindowKind : int32_t { kVmm = 1, kIpc = 2 };

/// What another process needs to import a window.
struct CudaWindowHandle {
  CudaWindowKind kind = CudaWindowKind::kVmm;
  int descriptor = -1;        // kVmm; whoever holds the handle closes it
  uint64_t mapped_bytes = 0;  // the window's length, rounded up
  unsigned char ipc[kCudaIpcBytes] = {};
};

/// The context in which it was made must be current whenever it is used, and in the destructor.
class CudaWindow {
 public:
  virtual ~CudaWindow() = default;
  CudaWindow(const CudaWindow&) = delete;
  CudaWindow& operator=(const CudaWindow&) = delete;

  std::byte* base() const { return reinterpret_cast<std::byte*>(address_); }
  bool is_imported() const { return imported_; }
  /// A descriptor in it is new and the caller's. Throws kCuda.
  virtual CudaWindowHandle export_handle() const = 0;
  /// Leaves the memory to the end of the process: others may still have it open.
  virtual void keep_forever() {}

 protected:
  CudaWindow(const CudaDriver& driver, bool imported) : driver_(driver), imported_(imported) {}
  /// Throws unless result is 0. step: "cuMemCreate".
  void check(int result, const char* step, size_t num_bytes) const;

  const CudaDriver& driver_;
  const bool imported_;
  uintptr_t address_ = 0;
};

/// Zeroed. Throws kCuda; then nothing is left behind.
std::unique_ptr<CudaWindow> make_cuda_window(const CudaDriver& driver, CudaWindowKind kind, int device,
                                             size_t num_bytes);
/// Maps a peer's window for `device`. The handle's descriptor stays the caller's. Throws kCuda.
std::unique_ptr<CudaWindow> import_cuda_window(const CudaDriver& driver, int device, const CudaWindowHandle& handle);

// The two kinds, for the functions above.
std::unique_ptr<CudaWindow> make_vmm_window(const CudaDriver& driver, int device, size_t num_bytes);
std::unique_ptr<CudaWindow> import_vmm_window(const CudaDriver& driver, int device, const CudaWindowHandle& handle);
std::unique_ptr<CudaWindow> make_ipc_window(const CudaDriver& driver, size_t num_bytes);
std::unique_ptr<CudaWindow> import_ipc_window(const CudaDriver& driver, const CudaWindowHandle& handle);

}  // namespace dcomm
