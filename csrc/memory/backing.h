// Shared memory behind a descriptor: made, checked and mapped. Floor: memory.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <vector>

#include "memory/windows.h"

namespace dcomm {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int descriptor) : descriptor_(descriptor) {}
  UniqueFd(UniqueFd&& other) noexcept : descriptor_(other.descriptor_) { other.descriptor_ = -1; }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  UniqueFd& operator=(UniqueFd&&) = delete;
  ~UniqueFd() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  int get() const { return descriptor_; }

 private:
  int descriptor_ = -1;
};

struct Backing {
  UniqueFd descriptor;
  bool sealed = false;  // false: the fallback in /dev/shm, which cannot be sealed
};

size_t round_to_pages(size_t bytes);

/// Zeroed memory of `bytes` bytes, a multiple of the page. Throws kSharedMemory.
Backing create_backing(size_t bytes, bool force_shm, const WindowPurpose& purpose);

/// The same length without memory: its pages come when they are touched first.
Backing create_reserved_backing(size_t bytes, bool force_shm, const WindowPurpose& purpose);

/// A peer's window must be as long as expected and unable to shrink, else reading it could raise SIGBUS.
void check_backing(int rank, int descriptor, size_t bytes, bool must_be_sealed);

/// Pre-faulted. Throws kSharedMemory naming `rank`, whose window it is.
std::byte* map_window(int rank, int descriptor, size_t bytes, bool stays_in_children);

/// The same of create_reserved_backing's: nothing is touched.
std::byte* map_reserved(int rank, int descriptor, size_t bytes, bool stays_in_children);

/// What an exchange returned; one for each of world_size ranks, the own entry empty.
std::vector<UniqueFd> take_ownership(const std::vector<int>& descriptors, int own_rank, int world_size);

}  // namespace dcomm
