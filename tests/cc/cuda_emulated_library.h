// What the parts of the emulated _cuda.so share.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "launch/cuda_api.h"

namespace dcomm::checks::cuda {

inline constexpr int kNumDevices = 2;

/// As CudaMessage of launch/cuda_status.cuh, which needs CUDA's headers.
class Message {
 public:
  Message(char* text, size_t num_bytes) : text_(text), num_bytes_(num_bytes) {}
  __attribute__((format(printf, 3, 4))) int32_t say(DcommCudaStatus status, const char* format, ...) const {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text_, num_bytes_, format, arguments);
    va_end(arguments);
    return status;
  }
  int32_t no_stream(const void* handle) const {
    return say(kDcommCudaFailed, "%p is no stream of the emulated GPU", handle);
  }

 private:
  char* const text_;
  const size_t num_bytes_;
};

int32_t create_list(const DcommCudaListOptions* options, DcommCudaList** list, char* text, size_t num_bytes);
void destroy_list(DcommCudaList* list);
int32_t copy_list_of(const DcommCudaList* list, const DcommCudaListCopy* copy, char* text, size_t num_bytes);
int32_t launch_floor(int32_t device, double* empty_launch_us, double* round_trip_us, char* text, size_t num_bytes);

}  // namespace dcomm::checks::cuda
