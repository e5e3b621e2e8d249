// Checks of adopted memory: shared while it is adopted, the caller's alone before and after, in children always.
#include "memory/adopted.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "rank_threads.h"

namespace dcomm::checks {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kBytes = 5 * kPage;

/// Pages of a rank's array, its neighbours on both sides included.
struct Memory {
  std::vector<std::byte> bytes = std::vector<std::byte>(kBytes + 4 * kPage);
  std::byte* array(size_t offset) {  // `offset` bytes behind a page's beginning
    const auto begin = reinterpret_cast<uintptr_t>(bytes.data()) % kPage;
    return bytes.data() + (begin == 0 ? 0 : kPage - begin) + kPage + offset;
  }
};

bool all_are(const std::byte* begin, size_t count, int value) {
  return std::all_of(begin, begin + count, [&](std::byte byte) { return byte == static_cast<std::byte>(value); });
}

/// Two ranks, each with an array that begins elsewhere in its page; body(rank, array, windows, mesh).
template <class Body>
void with_two_ranks(bool force_shm, const Body& body) {
  const NoLeakedDescriptors leaks;
  const size_t offsets[] = {100, 3000};
  expect_no_errors(run_ranks(2, [&](Mesh& mesh) {
    Memory memory;
    std::memset(memory.bytes.data(), 0x11, memory.bytes.size());
    std::byte* const array = memory.array(offsets[mesh.rank()]);
    std::memset(array, 0x22 + mesh.rank(), kBytes);
    const std::vector<Span> pages(2, whole_pages_of(array, kBytes));
    std::vector<Span> spans;
    for (size_t rank = 0; rank < 2; ++rank) spans.push_back({kPage - offsets[rank], kBytes - offsets[rank]});
    EXPECT_EQ(spans[static_cast<size_t>(mesh.rank())].begin, pages[0].begin);
    EXPECT_EQ(spans[static_cast<size_t>(mesh.rank())].end, pages[0].end);
    check_adoptable(array, pages[0]);
    {
      const auto windows = make_adopted_windows(
          mesh.rank(), array, spans, [&](int own) { return mesh.exchange_descriptors(own); }, force_shm);
      EXPECT(windows->at(mesh.rank()) == array);
      EXPECT(all_are(array, kBytes, 0x22 + mesh.rank()));  // what it held
      mesh.barrier();
      body(mesh, array, spans, *windows);
      mesh.barrier();
    }
    EXPECT(all_are(memory.bytes.data(), static_cast<size_t>(array - memory.bytes.data()), 0x11));
    EXPECT(all_are(array + kBytes, kPage, 0x11));
  }));
  leaks.verify();
}

}  // namespace

CHECK_CASE(adopted_pages_are_shared_until_they_are_given_back) {
  for (const bool force_shm : {false, true}) {
    with_two_ranks(force_shm, [](Mesh& mesh, std::byte* array, const std::vector<Span>& spans,
                                 AdoptedWindows& windows) {
      const auto own = static_cast<size_t>(mesh.rank()), peer = 1 - own;
      const auto fill_peers = [&](int value) {
        std::memset(windows.at(static_cast<int>(peer)) + spans[peer].begin, value, spans[peer].end - spans[peer].begin);
      };
      const std::byte* const pages = array + spans[own].begin;
      const size_t nbytes = spans[own].end - spans[own].begin;
      fill_peers(0x33);
      mesh.barrier();
      EXPECT(all_are(pages, nbytes, 0x33));
      EXPECT(all_are(array, spans[own].begin, 0x22 + mesh.rank()));  // beside whole pages
      mesh.barrier();
      windows.give_back();
      EXPECT(all_are(pages, nbytes, 0x33));
      check_adoptable(array, spans[own]);  // plain memory again
      mesh.barrier();
      fill_peers(0x44);  // of what was shared: whatever the caller's memory is by now, it is not reached
      mesh.barrier();
      EXPECT(all_are(pages, nbytes, 0x33));
      windows.give_back();  // once more is nothing
    });
  }
}

CHECK_CASE(adopted_pages_are_private_in_a_child) {
  if (kUnderTsan) return;
  Memory memory;
  std::byte* const array = memory.array(0);
  std::memset(array, 0x22, kBytes);
  const auto windows = make_adopted_windows(0, array, {{0, kBytes}}, [](int) { return std::vector<int>{-1}; }, false);
  Child child([&] {
    const bool same = all_are(array, kBytes, 0x22);
    std::memset(array, 0x55, kBytes);
    windows->give_back();  // nothing to do
    Child grandchild([&] {
      std::memset(array, 0x66, kBytes);
      return 0;
    });
    return same && grandchild.wait() == 0 && all_are(array, kBytes, 0x55) ? 0 : 1;
  });
  EXPECT_EQ(child.wait(), 0);
  EXPECT(all_are(array, kBytes, 0x22));
}

CHECK_CASE(adopted_memory_must_be_plain) {
  void* const shared = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  void* const constant = ::mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const auto refusal = [](void* memory) {
    return run_threads({[memory] { check_adoptable(static_cast<std::byte*>(memory), {0, kBytes}); }})[0];
  };
  EXPECT_ERROR(refusal(shared), ErrorCode::kInvalidArgument, "shared with other processes");
  EXPECT_ERROR(refusal(constant), ErrorCode::kInvalidArgument, "not writable");
  ::munmap(shared, kBytes);
  ::munmap(constant, kBytes);
  EXPECT(whole_pages_of(reinterpret_cast<std::byte*>(kPage + 1), 2 * kPage - 2).empty());
  const Span one = whole_pages_of(reinterpret_cast<std::byte*>(kPage + 1), 2 * kPage - 1);
  EXPECT_EQ(one.begin, kPage - 1);
  EXPECT_EQ(one.end, 2 * kPage - 1);
}

}  // namespace dcomm::checks
