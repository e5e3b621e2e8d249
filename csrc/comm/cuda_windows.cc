#include "comm/cuda_windows.h"

#include "base/error.h"
#include "comm/fork_guard.h"

namespace dcomm {

CudaWindowSet::CudaWindowSet(const DcommCudaTable& table, int device, int rank, int world_size)
    : table_(table), device_(device), rank_(rank) {
  for (int r = 0; r < world_size; ++r) windows_.emplace_back(nullptr, Deleter{&table_});
}

CudaWindowSet::~CudaWindowSet() {
  if (rank_ < 0) return;
  Window own = std::move(windows_[static_cast<size_t>(rank_)]);
  const bool others_may_have_it = windows_.size() > 1 && handle_.kind == kDcommCudaWindowIpc;
  windows_.clear();
  if (own != nullptr && others_may_have_it) table_.window_keep(own.get());
}

void CudaWindowSet::make(int rank, const DcommCudaWindowOptions& options) {
  DcommCudaWindow* made = nullptr;
  checked_cuda([&](char* text, size_t size) { return table_.window_create(&options, &made, text, size); });
  windows_[static_cast<size_t>(rank)].reset(made);
}

void CudaWindowSet::make_own(const DcommCudaWindowOptions& options) {
  make(rank_, options);
  const DcommCudaWindow* const own = windows_[static_cast<size_t>(rank_)].get();
  checked_cuda([&](char* text, size_t size) { return table_.window_export(own, &handle_, text, size); });
  if (handle_.descriptor >= 0) own_descriptor_.emplace(handle_.descriptor);
}

void CudaWindowSet::import_all(const std::vector<DcommCudaWindowHandle>& handles,
                               const std::vector<UniqueFd>* descriptors) {
  for (size_t peer = 0; peer < windows_.size(); ++peer) {
    if (static_cast<int>(peer) == rank_) continue;
    DcommCudaWindowHandle handle = handles[peer];
    handle.descriptor = descriptors == nullptr ? -1 : (*descriptors)[peer].get();
    DcommCudaWindow* made = nullptr;
    try {
      checked_cuda([&](char* text, size_t size) { return table_.window_import(device_, &handle, &made, text, size); });
    } catch (const Error& error) {
      throw_error(error.code(), "the window of rank ", peer, " on its GPU: ", error.what());
    }
    windows_[peer].reset(made);
  }
}

std::byte* CudaWindowSet::base(int rank) const {
  return static_cast<std::byte*>(table_.window_base(windows_[static_cast<size_t>(rank)].get()));
}

std::vector<DcommCudaWindow*> CudaWindowSet::list() const {
  std::vector<DcommCudaWindow*> all;
  for (const Window& window : windows_) all.push_back(window.get());
  return all;
}

void CudaWindowSet::release() {
  for (Window& window : windows_) static_cast<void>(window.release());
}

CudaRegionWindows::CudaRegionWindows(const DcommCudaTable& table, int device, int rank, int world_size)
    : table_(table),
      device_(device),
      generation_(fork_generation()),
      windows_(std::make_unique<CudaWindowSet>(table, device, rank, world_size)) {}

CudaRegionWindows::~CudaRegionWindows() {
  if (fork_generation() != generation_) {
    static_cast<void>(windows_.release());
    return;
  }
  char message[512] = "";  // a GPU that reports an error does nothing more
  static_cast<void>(table_.device_wait(device_, message, sizeof(message)));
}

void CudaRegionWindows::finish(size_t nbytes) {
  window_bytes_ = nbytes;
  bases_.clear();
  for (size_t rank = 0; rank < windows_->list().size(); ++rank) {
    bases_.push_back(windows_->base(static_cast<int>(rank)));
  }
}

std::shared_ptr<Windows> make_cuda_thread_windows(int device, int world_size, size_t nbytes) {
  const DcommCudaTable& table = cuda_table();
  auto made = std::make_shared<CudaRegionWindows>(table, device, -1, world_size);
  DcommCudaWindowOptions options{};
  options.device = device;
  options.kind = kDcommCudaWindowIpc;  // of this kind a window is an ordinary allocation
  options.num_bytes = nbytes;
  for (int rank = 0; rank < world_size; ++rank) made->windows().make(rank, options);
  made->finish(nbytes);
  return made;
}

}  // namespace dcomm
