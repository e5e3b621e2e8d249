// Windows of ranks that are processes: anonymous memory passed by descriptor. Floor: memory.
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "memory/backing.h"
#include "memory/windows.h"

namespace dcomm {
namespace {

class MemfdWindows final : public Windows {
 public:
  /// kept: the rank whose window stays in forked children; -1: none.
  MemfdWindows(int world_size, size_t window_bytes, int kept) : owner_(::getpid()), kept_(kept) {
    window_bytes_ = window_bytes;
    bases_.assign(static_cast<size_t>(world_size), nullptr);
  }
  ~MemfdWindows() override {
    // In a forked child the other mappings do not exist (MADV_DONTFORK) and their addresses may be in other use.
    const bool in_child = ::getpid() != owner_;
    for (int rank = 0; rank < world_size(); ++rank) {
      if (at(rank) != nullptr && (!in_child || rank == kept_)) ::munmap(at(rank), round_to_pages(window_bytes_));
    }
  }
  MemfdWindows(const MemfdWindows&) = delete;
  MemfdWindows& operator=(const MemfdWindows&) = delete;

  void map(int rank, int descriptor) {
    bases_[static_cast<size_t>(rank)] = map_window(rank, descriptor, round_to_pages(window_bytes_), rank == kept_);
  }

 private:
  const pid_t owner_;
  const int kept_;
};

}  // namespace

std::shared_ptr<Windows> make_memfd_windows(int rank, int world_size, size_t window_bytes,
                                            const DescriptorExchange& exchange, bool force_shm,
                                            const WindowPurpose& purpose) {
  DCOMM_CHECK(rank >= 0 && rank < world_size, ErrorCode::kInvalidArgument, "rank is ", rank, ", expected 0 to ",
              world_size - 1);
  DCOMM_CHECK(window_bytes >= 1, ErrorCode::kInvalidArgument, "window_bytes is 0, expected >= 1");
  const size_t mapped_bytes = round_to_pages(window_bytes);
  auto windows = std::make_shared<MemfdWindows>(world_size, window_bytes, purpose.stays_in_children ? rank : -1);
  const Backing own = create_backing(mapped_bytes, force_shm, purpose);
  windows->map(rank, own.descriptor.get());

  const std::vector<UniqueFd> peers = take_ownership(exchange(own.descriptor.get()), rank, world_size);
  for (int peer = 0; peer < world_size; ++peer) {
    if (peer == rank) continue;
    const int descriptor = peers[static_cast<size_t>(peer)].get();
    check_backing(peer, descriptor, mapped_bytes, own.sealed);
    windows->map(peer, descriptor);
  }
  return windows;
}

}  // namespace dcomm
