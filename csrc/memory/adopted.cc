// A caller's pages as windows. Floor: memory.
//
// mremap moves a mapping over another one in one step: at no time is there nothing at the address. A forked child must
// not keep the shared pages: it may free the array, and its allocator would then write into the parent's memory. Its
// pthread_atfork handler therefore maps them again, private. The handler may call async-signal-safe functions only,
// hence the fixed table.
#include "memory/adopted.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/error.h"
#include "memory/backing.h"

namespace dcomm {
namespace {

constexpr WindowPurpose kAdopted{"registered array", "register less"};
constexpr int kTableSize = 1024;

/// Pages that a forked child has to make private.
struct ForkEntry {
  std::atomic<bool> taken{false};
  std::atomic<std::byte*> pages{nullptr};  // nullptr: nothing to do; stored last
  size_t nbytes = 0;
  int descriptor = -1;
};
ForkEntry fork_table[kTableSize];

void make_private_in_child() noexcept {
  const int saved_errno = errno;
  for (ForkEntry& entry : fork_table) {
    std::byte* const pages = entry.pages.load(std::memory_order_acquire);
    if (pages == nullptr) continue;
    void* const mapped =
        ::mmap(pages, entry.nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, entry.descriptor, 0);
    if (mapped == MAP_FAILED) ::mprotect(pages, entry.nbytes, PROT_NONE);  // rather a fault than a parent's data
    ::close(entry.descriptor);
    entry.pages.store(nullptr, std::memory_order_relaxed);
  }
  errno = saved_errno;
}

ForkEntry& take_fork_entry() {
  static const int error = ::pthread_atfork(nullptr, nullptr, &make_private_in_child);
  if (error != 0) throw_errno(ErrorCode::kInternal, "pthread_atfork", error);
  for (ForkEntry& entry : fork_table) {
    if (!entry.taken.exchange(true, std::memory_order_acquire)) return entry;
  }
  throw_error(ErrorCode::kSharedMemory, "this process has ", kTableSize,
              " registered arrays already; close some, or register one large array instead of many small ones");
}

/// This rank's pages while they are shared.
class SharedPages {
 public:
  SharedPages(std::byte* pages, size_t nbytes, bool force_shm)
      : pages_(pages),
        nbytes_(nbytes),
        owner_(::getpid()),
        backing_(create_backing(nbytes, force_shm, kAdopted)),
        entry_(take_fork_entry()) {
    try {
      std::byte* const shared = map_window(0, backing_.descriptor.get(), nbytes, true);
      std::memcpy(shared, pages, nbytes);
      entry_.nbytes = nbytes;
      entry_.descriptor = backing_.descriptor.get();
      entry_.pages.store(pages, std::memory_order_release);
      move_over(shared);
    } catch (...) {
      forget();
      throw;
    }
    is_shared_ = true;
  }
  ~SharedPages() {
    const bool in_child = ::getpid() != owner_;
    try {
      give_back();
    } catch (const Error&) {
      // They stay shared, which does no harm: a peer writes only between this rank's "ready" and its own "done".
    }
    if (in_child || is_shared_) {  // the handler has closed the descriptor, or still needs it
      static_cast<void>(new UniqueFd(std::move(backing_.descriptor)));
    } else {
      entry_.taken.store(false, std::memory_order_release);
    }
  }
  SharedPages(const SharedPages&) = delete;
  SharedPages& operator=(const SharedPages&) = delete;

  const Backing& backing() const { return backing_; }

  void give_back() {
    if (!is_shared_ || ::getpid() != owner_) return;  // in a child they are private already
    void* const own = ::mmap(nullptr, nbytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (own == MAP_FAILED) throw_errno(ErrorCode::kSharedMemory, "giving an array's pages back: mmap", errno);
    std::memcpy(own, pages_, nbytes_);
    move_over(static_cast<std::byte*>(own));
    entry_.pages.store(nullptr, std::memory_order_release);
    is_shared_ = false;
  }

 private:
  void move_over(std::byte* from) {
    if (::mremap(from, nbytes_, nbytes_, MREMAP_MAYMOVE | MREMAP_FIXED, pages_) != MAP_FAILED) return;
    const int error = errno;
    ::munmap(from, nbytes_);
    throw_errno(ErrorCode::kSharedMemory,
                "replacing the pages of an array (many registered arrays? see vm.max_map_count)", error);
  }
  void forget() {
    entry_.pages.store(nullptr, std::memory_order_release);
    entry_.taken.store(false, std::memory_order_release);
  }

  std::byte* const pages_;
  const size_t nbytes_;
  const pid_t owner_;
  Backing backing_;
  ForkEntry& entry_;
  bool is_shared_ = false;
};

class AdoptedMemory final : public AdoptedWindows {
 public:
  AdoptedMemory(int rank, std::byte* array, const std::vector<Span>& pages, bool force_shm)
      : rank_(rank),
        pages_(pages),
        owner_(::getpid()),
        own_(array + pages[static_cast<size_t>(rank)].begin, length(rank), force_shm) {
    bases_.assign(pages.size(), nullptr);
    bases_[static_cast<size_t>(rank)] = array;
  }
  ~AdoptedMemory() override {
    if (::getpid() != owner_) return;  // MADV_DONTFORK, as other windows
    for (int peer = 0; peer < world_size(); ++peer) {
      if (peer != rank_ && at(peer) != nullptr) ::munmap(at(peer) + span(peer).begin, length(peer));
    }
  }
  AdoptedMemory(const AdoptedMemory&) = delete;
  AdoptedMemory& operator=(const AdoptedMemory&) = delete;

  const Backing& backing() const { return own_.backing(); }
  void map(int peer, int descriptor) {
    check_backing(peer, descriptor, length(peer), own_.backing().sealed);
    bases_[static_cast<size_t>(peer)] = map_window(peer, descriptor, length(peer), false) - span(peer).begin;
  }
  void give_back() override { own_.give_back(); }

 private:
  const Span& span(int rank) const { return pages_[static_cast<size_t>(rank)]; }
  size_t length(int rank) const { return span(rank).end - span(rank).begin; }

  const int rank_;
  const std::vector<Span> pages_;
  const pid_t owner_;
  SharedPages own_;
};

}  // namespace

Span whole_pages_of(const std::byte* array, size_t nbytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(array);
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + nbytes) / page * page;
  if (last <= first) return {};
  return {first - begin, last - begin};
}

void check_adoptable(const std::byte* array, Span pages) {
  const auto first = reinterpret_cast<uintptr_t>(array) + pages.begin;
  const auto last = reinterpret_cast<uintptr_t>(array) + pages.end;
  std::FILE* const maps = std::fopen("/proc/self/maps", "re");
  if (maps == nullptr) throw_errno(ErrorCode::kInvalidArgument, "/proc/self/maps, to see what memory this is", errno);
  char line[512];
  std::string problem;
  while (problem.empty() && std::fgets(line, sizeof(line), maps) != nullptr) {
    uintptr_t begin = 0, end = 0;
    uint64_t inode = 0;
    char access[5] = {};
    const int found = std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %*x %*s %" SCNu64, &begin, &end, access, &inode);
    if (found != 4 || end <= first || begin >= last) continue;
    if (inode != 0) problem = "mapped from a file";
    if (access[3] != 'p') problem = "shared with other processes, or registered, already";
    if (access[0] != 'r' || access[1] != 'w') problem = "not writable";
  }
  std::fclose(maps);
  DCOMM_CHECK(problem.empty(), ErrorCode::kInvalidArgument, "register: the array's memory is ", problem,
              ": expected memory of this process alone, as malloc gives it; register a copy");
}

std::shared_ptr<AdoptedWindows> make_adopted_windows(int rank, std::byte* array, const std::vector<Span>& pages,
                                                     const DescriptorExchange& exchange, bool force_shm) {
  const int world_size = static_cast<int>(pages.size());
  auto windows = std::make_shared<AdoptedMemory>(rank, array, pages, force_shm);
  const std::vector<UniqueFd> peers = take_ownership(exchange(windows->backing().descriptor.get()), rank, world_size);
  for (int peer = 0; peer < world_size; ++peer) {
    if (peer != rank) windows->map(peer, peers[static_cast<size_t>(peer)].get());
  }
  return windows;
}

}  // namespace dcomm
