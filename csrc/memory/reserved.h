// Windows of addresses without memory, which each rank gives to parts of its own when it needs them. Floor: memory.
//
// So memory can be shared among processes before anybody knows how much of it will be used, and a rank can take more
// without the others.
#pragma once

#include <cstddef>
#include <memory>

#include "memory/windows.h"

namespace dcomm {

class ReservedWindows : public Windows {
 public:
  /// Gives memory, zeroed, to what has none yet in `part` of this rank's window, in whole pages. Nobody, this rank
  /// included, may touch a part before. Throws kSharedMemory where there is no memory left.
  virtual void commit(Span part) = 0;
};

/// As make_memfd_windows, without memory. Ranks are processes. Needs Linux 5.14 for commit().
std::shared_ptr<ReservedWindows> make_reserved_windows(int rank, int world_size, size_t window_bytes,
                                                       const DescriptorExchange& exchange, bool force_shm,
                                                       const WindowPurpose& purpose);

}  // namespace dcomm
