// What windows on a GPU need of the NVIDIA driver: a table of functions, so that checks can pass another one.
// Floor: memory (plain C++; no CUDA header).
//
// Each returns the number of a CUresult, 0 when it did what it says, and works in the current context of the calling
// thread. Sizes are multiples of granularity().
#pragma once

#include <cstddef>
#include <cstdint>

namespace dcomm {

inline constexpr size_t kCudaIpcBytes = 64;

struct CudaDriver {
  // Memory that is passed as a descriptor.
  int (*granularity)(int device, size_t* num_bytes);
  int (*create)(int device, size_t num_bytes, uint64_t* memory);
  int (*release)(uint64_t memory);  // the memory itself lives as long as somebody maps it
  int (*export_descriptor)(uint64_t memory, int* descriptor);
  int (*import_descriptor)(int descriptor, uint64_t* memory);
  int (*reserve)(size_t num_bytes, uintptr_t* address);
  int (*unreserve)(uintptr_t address, size_t num_bytes);
  int (*map)(uintptr_t address, size_t num_bytes, uint64_t memory);
  int (*unmap)(uintptr_t address, size_t num_bytes);
  int (*allow_access)(uintptr_t address, size_t num_bytes, int device);

  // Memory that is passed as 64 bytes.
  int (*allocate)(size_t num_bytes, uintptr_t* address);
  int (*deallocate)(uintptr_t address);
  int (*ipc_export)(uintptr_t address, unsigned char* handle);
  int (*ipc_open)(const unsigned char* handle, uintptr_t* address);
  int (*ipc_close)(uintptr_t address);

  int (*zero)(uintptr_t address, size_t num_bytes);  // done when it returns
  const char* (*error_text)(int result);
};

inline constexpr int kCudaResultOutOfMemory = 2;

/// The NVIDIA driver's, found without linking to it. Throws kCuda, in one sentence, where there is none or it is too
/// old. In _cuda.so only.
const CudaDriver& cuda_driver();

}  // namespace dcomm
