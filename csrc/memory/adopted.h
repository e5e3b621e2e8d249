// Windows made of memory that a caller has already: its whole pages become shared ones. Floor: memory.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "memory/windows.h"

namespace dcomm {

/// The whole pages of [array, array + nbytes).
Span whole_pages_of(const std::byte* array, size_t nbytes);

/// Throws kInvalidArgument unless the memory is this process's alone: private, anonymous and writable. Pages of a file,
/// or shared with somebody already, must stay what they are.
void check_adoptable(const std::byte* array, Span pages);

/// Bases are where every rank's array begins, as this process sees it; of a peer's array only its pages are there.
class AdoptedWindows : public Windows {
 public:
  /// Gives this rank its pages back as private memory with the present content; no peer reaches them after that. Nobody
  /// may use the array meanwhile. Throws kSharedMemory and changes nothing where there is no memory for it.
  virtual void give_back() = 0;
};

/// Moves the content of this rank's pages to shared memory and puts that in their place, exchanges descriptors and maps
/// the peers' pages. Nobody may use the array meanwhile. pages: by rank. A forked child gets private pages, which show
/// what its parent writes until either of them is written by the child.
std::shared_ptr<AdoptedWindows> make_adopted_windows(int rank, std::byte* array, const std::vector<Span>& pages,
                                                     const DescriptorExchange& exchange, bool force_shm);

}  // namespace dcomm
