// Symmetric memory of one host: every rank owns one window, mapped by all local ranks. Floor: memory.
//
// heap.cc: ranks are threads of one process. memfd.cc: ranks are processes; anonymous memory passed by
// descriptor, so no name in /dev/shm, no limit of its mount, and the kernel frees it with the last process.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

namespace dcomm {

/// Part of an array, in bytes from its beginning.
struct Span {
  size_t begin = 0;
  size_t end = 0;

  bool empty() const { return end <= begin; }
};

class Windows {
 public:
  virtual ~Windows() = default;
  /// Base of `rank`'s window in this process: 4096-byte aligned, window_bytes() long, zeroed at creation.
  std::byte* at(int rank) const { return bases_[static_cast<size_t>(rank)]; }
  size_t window_bytes() const { return window_bytes_; }
  int world_size() const { return static_cast<int>(bases_.size()); }

 protected:
  std::vector<std::byte*> bases_;
  size_t window_bytes_ = 0;
};

/// What windows are for: the words of errors, and whether forked children see them.
struct WindowPurpose {
  const char* noun = "window";
  const char* remedy = "lower DCOMM_WINDOW_BYTES";
  /// A child keeps this rank's own window, shared with its parent; it never has the peers'.
  bool stays_in_children = false;
};

/// All windows of `world_size` ranks that are threads of this process.
std::shared_ptr<Windows> make_heap_windows(int world_size, size_t window_bytes, const WindowPurpose& purpose = {});

/// Gives this rank's descriptor to every peer and returns theirs (index = rank; own entry ignored).
/// The callee owns the returned descriptors.
using DescriptorExchange = std::function<std::vector<int>(int own_descriptor)>;

/// Creates this rank's window (memfd, fallocate'd, sealed, pre-faulted, by default MADV_DONTFORK), exchanges
/// descriptors, maps the peers' windows, closes all descriptors. Throws kSharedMemory naming the bytes
/// needed, what failed, and the next step. `force_shm` (DCOMM_FORCE_SHM, tests): the fallback without memfd:
/// an O_EXCL 0600 name in /dev/shm, fallocate'd, unlinked before first use.
std::shared_ptr<Windows> make_memfd_windows(int rank, int world_size, size_t window_bytes,
                                            const DescriptorExchange& exchange, bool force_shm,
                                            const WindowPurpose& purpose = {});

}  // namespace dcomm
