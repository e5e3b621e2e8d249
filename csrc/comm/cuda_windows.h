// Windows on the GPUs of all ranks, as one process makes its own and maps the others'. Floor: comm.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "launch/cuda_api.h"
#include "launch/cuda_loader.h"
#include "memory/backing.h"
#include "memory/windows.h"

namespace dcomm {

/// f(message, its length) -> status. Throws as check_cuda.
template <class F>
void checked_cuda(const F& f) {
  char message[512] = "";
  check_cuda(f(message, sizeof(message)), message);
}

class CudaWindowSet {
 public:
  /// rank: whose process this is; -1: that of all ranks, which are threads.
  CudaWindowSet(const DcommCudaTable& table, int device, int rank, int world_size);
  /// Nobody here uses them any more. What others have made is let go before the own one, which stays allocated where
  /// another process may still have it open (kind Ipc).
  ~CudaWindowSet();
  CudaWindowSet(const CudaWindowSet&) = delete;
  CudaWindowSet& operator=(const CudaWindowSet&) = delete;

  /// Rank `rank`'s, zeroed.
  void make(int rank, const DcommCudaWindowOptions& options);
  /// The same for the process of one rank, with a handle for the others; see own_descriptor().
  void make_own(const DcommCudaWindowOptions& options);
  const DcommCudaWindowHandle& handle() const { return handle_; }
  /// -1: none.
  int own_descriptor() const { return own_descriptor_ ? own_descriptor_->get() : -1; }
  void close_own_descriptor() { own_descriptor_.reset(); }
  /// descriptors: by rank, where the handles' numbers are those of other processes. Throws naming the rank whose window
  /// cannot be mapped.
  void import_all(const std::vector<DcommCudaWindowHandle>& handles, const std::vector<UniqueFd>* descriptors);

  std::byte* base(int rank) const;
  /// By rank.
  std::vector<DcommCudaWindow*> list() const;
  /// They are somebody else's from now on.
  void release();

 private:
  struct Deleter {
    const DcommCudaTable* table;
    void operator()(DcommCudaWindow* window) const { table->window_destroy(window); }
  };
  using Window = std::unique_ptr<DcommCudaWindow, Deleter>;

  const DcommCudaTable& table_;
  const int device_;
  const int rank_;
  std::vector<Window> windows_;  // by rank
  DcommCudaWindowHandle handle_{};
  std::optional<UniqueFd> own_descriptor_;
};

/// Users' arrays on GPUs: a window of every rank. The last one to let go waits for the GPU, as cudaFree does: kernels
/// that were launched may still use them.
class CudaRegionWindows final : public Windows {
 public:
  CudaRegionWindows(const DcommCudaTable& table, int device, int rank, int world_size);
  ~CudaRegionWindows() override;
  CudaRegionWindows(const CudaRegionWindows&) = delete;
  CudaRegionWindows& operator=(const CudaRegionWindows&) = delete;

  CudaWindowSet& windows() { return *windows_; }
  /// All windows are there.
  void finish(size_t nbytes);

 private:
  const DcommCudaTable& table_;
  const int device_;
  const uint32_t generation_;  // of forks: the GPU is the parent's
  std::unique_ptr<CudaWindowSet> windows_;
};

/// Of ranks that are threads and share `device`: plain memory, whose addresses all have. Throws kCuda.
std::shared_ptr<Windows> make_cuda_thread_windows(int device, int world_size, size_t nbytes);

}  // namespace dcomm
