// Windows in GPU memory against a driver of host memory: order, what is left behind, and words, whatever step fails.
#include <algorithm>

#include "fake_cuda_driver.h"
#include "memory/cuda_window.h"

namespace dcomm::checks {
namespace {

constexpr size_t kBytes = 3 * FakeCudaDriver::kGrain - 100;
constexpr CudaWindowKind kKinds[] = {CudaWindowKind::kVmm, CudaWindowKind::kIpc};

/// Makes a window, exports it and imports it again, as another process would.
void pass_on(CudaWindowKind kind) {
  const CudaDriver& driver = FakeCudaDriver::table();
  const auto own = make_cuda_window(driver, kind, 0, kBytes);
  EXPECT(!own->is_imported());
  EXPECT(std::all_of(own->base(), own->base() + kBytes, [](std::byte b) { return b == std::byte{0}; }));
  const CudaWindowHandle handle = own->export_handle();
  std::unique_ptr<CudaWindow> theirs;
  try {
    theirs = import_cuda_window(driver, 0, handle);
  } catch (...) {
    close(handle.descriptor);
    throw;
  }
  close(handle.descriptor);
  EXPECT(theirs->is_imported());
  theirs->base()[kBytes - 1] = std::byte{7};
  EXPECT(own->base()[kBytes - 1] == std::byte{7});
}

CHECK_CASE(cuda_window_is_the_same_memory_on_both_sides) {
  for (const CudaWindowKind kind : kKinds) {
    const int before = count_descriptors();
    FakeCudaDriver fake;
    pass_on(kind);
    EXPECT_EQ(fake.num_alive(), size_t{0});
    EXPECT_EQ(count_descriptors(), before);
  }
}

CHECK_CASE(cuda_window_steps_are_in_order) {
  FakeCudaDriver fake;
  pass_on(CudaWindowKind::kVmm);
  const std::vector<std::string> expected = {"granularity", "create",  "reserve", "map",       "allow",  "zero",
                                             "export",      "import",  "reserve", "map",       "allow",  "unmap",
                                             "unreserve",   "release", "unmap",   "unreserve", "release"};
  EXPECT(fake.log == expected);
}

/// Each call of the driver fails in turn: a typed error that says which, and nothing is left behind.
CHECK_CASE(cuda_window_leaves_nothing_behind) {
  for (const CudaWindowKind kind : kKinds) {
    int num_calls = 0;
    {
      FakeCudaDriver fake;
      pass_on(kind);
      num_calls = fake.num_calls();
    }
    EXPECT_EQ(num_calls, kind == CudaWindowKind::kVmm ? 11 : 4);
    for (int call = 0; call < num_calls; ++call) {
      const int before = count_descriptors();
      FakeCudaDriver fake;
      fake.fails_at = call;
      std::string text;
      try {
        pass_on(kind);
      } catch (const Error& error) {
        EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(ErrorCode::kCuda));
        text = error.what();
      }
      EXPECT_MSG(text.find("the fake refuses (999); ") != std::string::npos, text);
      EXPECT_MSG(text.find(kind == CudaWindowKind::kVmm ? "cuMem" : "cu") != std::string::npos ||
                     text.find("zeroing") != std::string::npos,
                 text);
      EXPECT_MSG(fake.num_alive() == 0, text + ": something is left");
      EXPECT_MSG(count_descriptors() == before, text + ": a descriptor is left");
    }
  }
}

CHECK_CASE(cuda_window_says_what_to_do) {
  FakeCudaDriver fake;
  fake.result = kCudaResultOutOfMemory;
  fake.fails_at = 1;
  try {
    pass_on(CudaWindowKind::kVmm);
    EXPECT(false);
  } catch (const Error& error) {
    EXPECT(std::string(error.what()).find("DCOMM_CUDA_SLOT_BYTES") != std::string::npos);
  }
}

/// The fake would notice memory that is freed while others have it open.
CHECK_CASE(cuda_window_that_others_may_have_open_is_kept) {
  FakeCudaDriver fake;
  const CudaDriver& driver = FakeCudaDriver::table();
  auto own = make_cuda_window(driver, CudaWindowKind::kIpc, 0, 256);
  const uintptr_t address = reinterpret_cast<uintptr_t>(own->base());
  auto theirs = import_cuda_window(driver, 0, own->export_handle());
  own->keep_forever();
  own.reset();
  EXPECT_EQ(fake.num_alive(), size_t{2});
  theirs->base()[0] = std::byte{1};
  theirs.reset();
  EXPECT_EQ(fake.num_alive(), size_t{1});
  driver.deallocate(address);
}

}  // namespace
}  // namespace dcomm::checks
