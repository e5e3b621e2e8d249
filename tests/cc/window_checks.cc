// Checks of the windows: shared, zeroed, sealed, gone afterwards, and never SIGBUS.
#include "memory/windows.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <cerrno>
#include <cstring>

#include "rank_threads.h"

namespace dcomm::checks {
namespace {

constexpr size_t kBytes = 3 * 4096 + 100;  // not a multiple of a page

/// Every rank writes its mark into every window, all see all marks.
void check_sharing(Mesh& mesh, Windows& windows) {
  const auto rank = static_cast<size_t>(mesh.rank());
  const auto world_size = static_cast<size_t>(mesh.world_size());
  EXPECT_EQ(windows.window_bytes(), kBytes);
  for (size_t i = 0; i < kBytes; ++i) EXPECT(windows.at(mesh.rank())[i] == std::byte{0});
  for (size_t owner = 0; owner < world_size; ++owner) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(windows.at(static_cast<int>(owner))) % 4096, 0U);
  }
  mesh.barrier();
  for (size_t owner = 0; owner < world_size; ++owner) {
    windows.at(static_cast<int>(owner))[rank] = static_cast<std::byte>(10 * owner + rank + 1);
  }
  mesh.barrier();
  for (size_t owner = 0; owner < world_size; ++owner) {
    for (size_t writer = 0; writer < world_size; ++writer) {
      EXPECT(windows.at(static_cast<int>(owner))[writer] == static_cast<std::byte>(10 * owner + writer + 1));
    }
  }
}

DescriptorExchange exchange_over(Mesh& mesh) {
  return [&mesh](int own) { return mesh.exchange_descriptors(own); };
}

void check_windows_of_threads(bool force_shm) {
  const NoLeakedDescriptors leaks;
  const int files_before = count_entries("/dev/shm");
  expect_no_errors(run_ranks(3, [&](Mesh& mesh) {
    const auto windows = make_memfd_windows(mesh.rank(), 3, kBytes, exchange_over(mesh), force_shm);
    EXPECT_EQ(count_entries("/dev/shm"), files_before);
    check_sharing(mesh, *windows);
  }));
  EXPECT_EQ(count_entries("/dev/shm"), files_before);
  leaks.verify();
}

Outcome outcome_of(const std::function<void()>& task) { return run_threads({task})[0]; }

}  // namespace

CHECK_CASE(windows_on_the_heap) {
  const auto windows = make_heap_windows(3, kBytes);
  EXPECT_EQ(windows->world_size(), 3);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(windows->at(rank)) % 4096, 0U);
    for (size_t i = 0; i < kBytes; ++i) EXPECT(windows->at(rank)[i] == std::byte{0});
  }
}

CHECK_CASE(windows_of_memfd_are_shared) { check_windows_of_threads(false); }
CHECK_CASE(windows_of_dev_shm_are_shared_and_leave_no_name) { check_windows_of_threads(true); }

CHECK_CASE(windows_are_shared_between_processes) {
  if (kUnderTsan) return;
  const std::string key = fresh_key();
  const auto run = [&](int rank, bool force_shm) {
    const auto mesh = Mesh::connect(options_for(rank, 2, key + (force_shm ? "s" : "m")));
    const auto windows = make_memfd_windows(rank, 2, kBytes, exchange_over(*mesh), force_shm);
    check_sharing(*mesh, *windows);
    return 0;
  };
  for (const bool force_shm : {false, true}) {
    Child child([&] { return run(1, force_shm); });
    run(0, force_shm);
    EXPECT_EQ(child.wait(), 0);
  }
}

CHECK_CASE(windows_are_sealed) {
  int descriptor = -1;
  const auto windows = make_memfd_windows(
      0, 1, kBytes,
      [&](int own) {
        descriptor = ::fcntl(own, F_DUPFD_CLOEXEC, 0);
        return std::vector<int>{-1};
      },
      false);
  EXPECT_EQ(::ftruncate(descriptor, 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::ftruncate(descriptor, 1 << 20), -1);
  EXPECT_EQ(::fcntl(descriptor, F_ADD_SEALS, F_SEAL_WRITE), -1);
  EXPECT_EQ(::fcntl(descriptor, F_GETFD), FD_CLOEXEC);
  ::close(descriptor);
}

CHECK_CASE(windows_of_a_peer_are_checked) {
  const NoLeakedDescriptors leaks;
  const auto with_peer = [](off_t nbytes) {
    return outcome_of([nbytes] {
      make_memfd_windows(
          0, 2, kBytes,
          [nbytes](int) {
            const int peer = ::memfd_create("check", MFD_CLOEXEC);
            EXPECT_EQ(::ftruncate(peer, nbytes), 0);
            return std::vector<int>{-1, peer};
          },
          false);
    });
  };
  EXPECT_ERROR(with_peer(4096), ErrorCode::kSharedMemory, "the window of rank 1 has 4096 bytes, expected 16384");
  EXPECT_ERROR(with_peer(16384), ErrorCode::kSharedMemory, "the window of rank 1 is not sealed");
  EXPECT_ERROR(outcome_of([] { make_memfd_windows(0, 2, kBytes, [](int) { return std::vector<int>{}; }, false); }),
               ErrorCode::kSharedMemory, "0 descriptors, expected 2");
  leaks.verify();
}

CHECK_CASE(windows_do_not_exist_in_a_forked_child) {
  if (kUnderTsan) return;
  auto windows = make_memfd_windows(0, 1, kBytes, [](int) { return std::vector<int>{-1}; }, false);
  std::byte* base = windows->at(0);
  Child child([&] {
    unsigned char present = 0;
    if (::mincore(base, 4096, &present) == 0 || errno != ENOMEM) return 1;
    // The child may use the address for something else, which the destructor must not unmap.
    void* reused = ::mmap(base, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (reused != base) return 2;
    windows.reset();
    return ::mincore(base, 4096, &present) == 0 ? 0 : 3;
  });
  EXPECT_EQ(child.wait(), 0);
}

CHECK_CASE(windows_in_a_small_dev_shm) {
  if (kUnderTsan || ::geteuid() != 0) return;
  constexpr int kNotAllowed = 42;
  Child child([] {
    if (::unshare(CLONE_NEWNS) != 0) return kNotAllowed;
    ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
    if (::mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=1m") != 0) return kNotAllowed;
    const auto make = [](bool force_shm) {
      const auto windows = make_memfd_windows(0, 1, 8 << 20, [](int) { return std::vector<int>{-1}; }, force_shm);
      std::memset(windows->at(0), 1, windows->window_bytes());
    };
    make(false);  // memfd knows no such limit
    const Outcome outcome = outcome_of([&] { make(true); });
    EXPECT_ERROR(outcome, ErrorCode::kSharedMemory, "8388608 bytes needed in /dev/shm, 1048576 bytes free");
    EXPECT_ERROR(outcome, ErrorCode::kSharedMemory, "--shm-size");
    return 0;
  });
  const int code = child.wait();
  EXPECT(code == 0 || code == kNotAllowed);
}

}  // namespace dcomm::checks
