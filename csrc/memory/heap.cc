// Windows of ranks that are threads of one process: plain heap memory. Floor: memory.
//
// One allocation per rank, not one for all, so that AddressSanitizer sees a write past a window's end.
#include <cstring>
#include <new>

#include "base/error.h"
#include "memory/windows.h"

namespace dcomm {
namespace {

constexpr std::align_val_t kWindowAlignment{4096};

class HeapWindows final : public Windows {
 public:
  HeapWindows(int world_size, size_t window_bytes, const WindowPurpose& purpose) {
    window_bytes_ = window_bytes;
    bases_.reserve(static_cast<size_t>(world_size));
    for (int rank = 0; rank < world_size; ++rank) {
      void* base = ::operator new(window_bytes, kWindowAlignment, std::nothrow);
      if (base == nullptr) {
        release();
        throw_error(ErrorCode::kSharedMemory, "no memory for the ", purpose.noun, " of rank ", rank, ": ", window_bytes,
                    " bytes needed for each of ", world_size, " ranks; ", purpose.remedy);
      }
      std::memset(base, 0, window_bytes);
      bases_.push_back(static_cast<std::byte*>(base));
    }
  }
  ~HeapWindows() override { release(); }
  HeapWindows(const HeapWindows&) = delete;
  HeapWindows& operator=(const HeapWindows&) = delete;

 private:
  void release() noexcept {
    for (std::byte* base : bases_) ::operator delete(base, kWindowAlignment);
    bases_.clear();
  }
};

}  // namespace

std::shared_ptr<Windows> make_heap_windows(int world_size, size_t window_bytes, const WindowPurpose& purpose) {
  DCOMM_CHECK(world_size >= 1, ErrorCode::kInvalidArgument, "world_size is ", world_size, ", expected >= 1");
  DCOMM_CHECK(window_bytes >= 1, ErrorCode::kInvalidArgument, "window_bytes is 0, expected >= 1");
  return std::make_shared<HeapWindows>(world_size, window_bytes, purpose);
}

}  // namespace dcomm
