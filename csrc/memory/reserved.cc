// Windows of addresses without memory. Floor: memory.
//
// A memfd as long as the window, of which nothing is allocated: pages that nobody has touched cost nothing. A first
// touch without memory left would be SIGBUS, or the OOM killer's; MADV_POPULATE_WRITE does the same and returns an
// error.
#include "memory/reserved.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/error.h"
#include "memory/backing.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace dcomm {
namespace {

constexpr size_t kCommitStepBytes = size_t{4} << 20;  // small enough to get done between two signals

class ReservedMemory final : public ReservedWindows {
 public:
  ReservedMemory(int rank, int world_size, size_t window_bytes, const WindowPurpose& purpose)
      : rank_(rank), owner_(::getpid()), purpose_(purpose) {
    window_bytes_ = round_to_pages(window_bytes);
    bases_.assign(static_cast<size_t>(world_size), nullptr);
  }
  ~ReservedMemory() override {
    const bool in_child = ::getpid() != owner_;  // which has this rank's own window only
    for (int rank = 0; rank < world_size(); ++rank) {
      if (at(rank) != nullptr && (!in_child || rank == rank_)) ::munmap(at(rank), window_bytes_);
    }
  }
  ReservedMemory(const ReservedMemory&) = delete;
  ReservedMemory& operator=(const ReservedMemory&) = delete;

  void map(int rank, int descriptor) {
    const bool stays = rank == rank_ && purpose_.stays_in_children;
    bases_[static_cast<size_t>(rank)] = map_reserved(rank, descriptor, window_bytes_, stays);
  }

  void commit(Span part) override {
    DCOMM_CHECK(part.end <= window_bytes_, ErrorCode::kInvalidArgument, "commit up to byte ", part.end, " of ",
                window_bytes_, ": expected a part of the window");
    const size_t end = round_to_pages(part.end);
    for (size_t begin = part.begin / kPage * kPage; begin < end;) {
      const size_t step = std::min(kCommitStepBytes, end - begin);
      if (::madvise(at(rank_) + begin, step, MADV_POPULATE_WRITE) == 0) {
        begin += step;
      } else if (errno != EINTR && errno != EAGAIN) {
        throw_no_memory(step, errno);
      }
    }
  }

 private:
  static constexpr size_t kPage = 4096;

  [[noreturn]] void throw_no_memory(size_t nbytes, int error) const {
    if (error == EINVAL) {
      throw_error(ErrorCode::kSharedMemory, purpose_.noun, ": this kernel has no MADV_POPULATE_WRITE; expected Linux ",
                  "5.14 or later. Go on with ordinary memory");
    }
    throw_errno(ErrorCode::kSharedMemory,
                std::string("no memory for ") + std::to_string(nbytes) + " more bytes of the " + purpose_.noun +
                    "; use a machine or container with more of it, or " + purpose_.remedy,
                error);
  }

  const int rank_;
  const pid_t owner_;
  const WindowPurpose purpose_;
};

}  // namespace

std::shared_ptr<ReservedWindows> make_reserved_windows(int rank, int world_size, size_t window_bytes,
                                                       const DescriptorExchange& exchange, bool force_shm,
                                                       const WindowPurpose& purpose) {
  DCOMM_CHECK(window_bytes >= 1, ErrorCode::kInvalidArgument, "window_bytes is 0, expected >= 1");
  auto windows = std::make_shared<ReservedMemory>(rank, world_size, window_bytes, purpose);
  const Backing own = create_reserved_backing(windows->window_bytes(), force_shm, purpose);
  windows->map(rank, own.descriptor.get());
  const std::vector<UniqueFd> peers = take_ownership(exchange(own.descriptor.get()), rank, world_size);
  for (int peer = 0; peer < world_size; ++peer) {
    if (peer == rank) continue;
    const int descriptor = peers[static_cast<size_t>(peer)].get();
    check_backing(peer, descriptor, windows->window_bytes(), own.sealed);
    windows->map(peer, descriptor);
  }
  return windows;
}

}  // namespace dcomm
