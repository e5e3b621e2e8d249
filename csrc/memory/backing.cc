// Shared memory behind a descriptor. Floor: memory.
//
// memfd_create, fallocate (a bare ftruncate would let the first write die with SIGBUS when memory is short),
// seals against shrinking (a peer could otherwise make our reads die), MAP_POPULATE, MADV_DONTFORK.
// Where memfd is refused (seccomp, old sandboxes): a file in /dev/shm whose name is gone before its first
// use.
#include "memory/backing.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/error.h"

namespace dcomm {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kFallocateStepBytes = size_t{4} << 20;  // small enough to get done between two signals
constexpr int kWindowSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

[[noreturn]] void throw_no_space(size_t bytes, bool in_dev_shm, int error, const WindowPurpose& purpose) {
  if (!in_dev_shm) {
    throw_error(ErrorCode::kSharedMemory, "cannot allocate memory for the ", purpose.noun, " of ", bytes,
                " bytes: fallocate of a memfd: ", std::strerror(error), " (errno ", error,
                "); use a machine or container with more memory (memfd counts to its limit), or ", purpose.remedy);
  }
  struct statvfs space{};
  const bool known = ::statvfs("/dev/shm", &space) == 0;
  const std::string free_text =
      known ? std::to_string(static_cast<uint64_t>(space.f_bavail) * space.f_frsize) : "an unknown number of";
  throw_error(ErrorCode::kSharedMemory, "cannot allocate memory for the ", purpose.noun, ": ", bytes,
              " bytes needed in /dev/shm, ", free_text, " bytes free: fallocate: ", std::strerror(error), " (errno ",
              error, "); start the container with a larger --shm-size, or ", purpose.remedy);
}

void allocate_pages(int descriptor, size_t bytes, bool in_dev_shm, const WindowPurpose& purpose) {
  // A memfd has no limit of its own: what does not fit the machine would end in the arms of the OOM killer.
  const auto machine_bytes =
      static_cast<size_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  if (bytes > machine_bytes) throw_no_space(bytes, in_dev_shm, ENOMEM, purpose);
  for (size_t offset = 0; offset < bytes;) {
    const size_t step = std::min(kFallocateStepBytes, bytes - offset);
    if (::fallocate(descriptor, 0, static_cast<off_t>(offset), static_cast<off_t>(step)) == 0) {
      offset += step;
    } else if (errno != EINTR) {
      throw_no_space(bytes, in_dev_shm, errno, purpose);
    }
  }
}

void set_length(int descriptor, size_t bytes, bool, const WindowPurpose& purpose) {
  if (::ftruncate(descriptor, static_cast<off_t>(bytes)) == 0) return;
  throw_errno(ErrorCode::kSharedMemory,
              "reserving " + std::to_string(bytes) + " bytes as " + purpose.noun + "; " + purpose.remedy, errno);
}

int try_memfd() {
  // MFD_NOEXEC_SEAL is asked for by hardened kernels (vm.memfd_noexec) and unknown before Linux 6.3.
  const int descriptor = ::memfd_create("dcomm", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
  if (descriptor >= 0 || errno != EINVAL) return descriptor;
  return ::memfd_create("dcomm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

std::string random_shm_path() {
  std::array<uint8_t, 16> bits{};
  if (::getrandom(bits.data(), bits.size(), 0) != static_cast<ssize_t>(bits.size())) {
    throw_errno(ErrorCode::kSharedMemory, "getrandom", errno);
  }
  std::string path = "/dev/shm/dcomm-";
  for (const uint8_t byte : bits) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", byte);
    path += digits;
  }
  return path;
}

UniqueFd open_unlinked_shm() {
  for (int attempt = 0; attempt < 8; ++attempt) {
    const std::string path = random_shm_path();
    UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (file.get() >= 0) {
      // At once, so that not even a SIGKILL during fallocate leaves a file behind.
      if (::unlink(path.c_str()) != 0) throw_errno(ErrorCode::kSharedMemory, "unlink of " + path, errno);
      return file;
    }
    if (errno != EEXIST && errno != EINTR) {
      throw_errno(ErrorCode::kSharedMemory,
                  "memfd_create is not usable and creating a file in /dev/shm failed; allow memfd_create in the "
                  "seccomp profile, or mount a tmpfs on /dev/shm",
                  errno);
    }
  }
  throw_error(ErrorCode::kSharedMemory, "no free name found in /dev/shm after 8 random ones");
}

using Sizing = void (*)(int descriptor, size_t bytes, bool in_dev_shm, const WindowPurpose& purpose);

Backing create(size_t bytes, bool force_shm, const WindowPurpose& purpose, Sizing set_size) {
  if (!force_shm) {
    UniqueFd memfd(try_memfd());
    if (memfd.get() >= 0) {
      set_size(memfd.get(), bytes, false, purpose);
      if (::fcntl(memfd.get(), F_ADD_SEALS, kWindowSeals) != 0) {
        throw_errno(ErrorCode::kSharedMemory, "sealing a window", errno);
      }
      return {std::move(memfd), true};
    }
    if (errno != ENOSYS && errno != EPERM && errno != EACCES) {
      throw_errno(ErrorCode::kSharedMemory,
                  "memfd_create for a window of " + std::to_string(bytes) +
                      " bytes (raise ulimit -n if descriptors "
                      "ran out)",
                  errno);
    }
  }
  UniqueFd file = open_unlinked_shm();
  set_size(file.get(), bytes, true, purpose);
  return {std::move(file), false};
}

std::byte* map_shared(int rank, int descriptor, size_t bytes, int flags, bool stays_in_children) {
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | flags, descriptor, 0);
  if (base == MAP_FAILED) {
    throw_errno(ErrorCode::kSharedMemory,
                "mapping " + std::to_string(bytes) + " bytes of the window of rank " + std::to_string(rank), errno);
  }
  if (!stays_in_children && ::madvise(base, bytes, MADV_DONTFORK) != 0) {
    const int error = errno;
    ::munmap(base, bytes);
    throw_errno(ErrorCode::kSharedMemory, "madvise(MADV_DONTFORK)", error);
  }
  return static_cast<std::byte*>(base);
}

}  // namespace

size_t round_to_pages(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

Backing create_backing(size_t bytes, bool force_shm, const WindowPurpose& purpose) {
  return create(bytes, force_shm, purpose, &allocate_pages);
}

Backing create_reserved_backing(size_t bytes, bool force_shm, const WindowPurpose& purpose) {
  return create(bytes, force_shm, purpose, &set_length);
}

void check_backing(int rank, int descriptor, size_t bytes, bool must_be_sealed) {
  struct stat info{};
  if (::fstat(descriptor, &info) != 0) {
    throw_errno(ErrorCode::kSharedMemory, "the descriptor of rank " + std::to_string(rank) + " is not usable", errno);
  }
  DCOMM_CHECK(info.st_size == static_cast<off_t>(bytes), ErrorCode::kSharedMemory, "the window of rank ", rank, " has ",
              info.st_size, " bytes, expected ", bytes, "; set DCOMM_WINDOW_BYTES equally on all ranks");
  if (!must_be_sealed) return;
  const int seals = ::fcntl(descriptor, F_GET_SEALS);
  DCOMM_CHECK(seals >= 0 && (seals & kWindowSeals) == kWindowSeals, ErrorCode::kSharedMemory, "the window of rank ",
              rank, " is not sealed (seals ", seals, ", expected ", kWindowSeals,
              "); set DCOMM_FORCE_SHM equally on all ranks");
}

std::byte* map_window(int rank, int descriptor, size_t bytes, bool stays_in_children) {
  return map_shared(rank, descriptor, bytes, MAP_POPULATE, stays_in_children);
}

std::byte* map_reserved(int rank, int descriptor, size_t bytes, bool stays_in_children) {
  return map_shared(rank, descriptor, bytes, MAP_NORESERVE, stays_in_children);
}

std::vector<UniqueFd> take_ownership(const std::vector<int>& descriptors, int own_rank, int world_size) {
  std::vector<UniqueFd> owned;
  owned.reserve(descriptors.size());
  for (size_t rank = 0; rank < descriptors.size(); ++rank) {
    owned.emplace_back(static_cast<int>(rank) == own_rank ? -1 : descriptors[rank]);
  }
  DCOMM_CHECK(owned.size() == static_cast<size_t>(world_size), ErrorCode::kSharedMemory, "the exchange returned ",
              owned.size(), " descriptors, expected ", world_size);
  return owned;
}

}  // namespace dcomm
