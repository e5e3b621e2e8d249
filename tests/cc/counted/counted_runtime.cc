// The counting CUDA runtime of cuda_runtime.h, kernels that are names only, and what a test asks of both.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "fake_cuda_driver.h"
#include "launch/cuda_kernels.h"
#include "launch/cuda_plan.h"
#include "launch/cuda_status.cuh"

namespace dcomm::checks::counted {
namespace {

std::mutex counts_mutex;
std::map<std::string, int>& counts() {
  static std::map<std::string, int>& all = *new std::map<std::string, int>;
  return all;
}
std::atomic<bool> is_busy{false};  // nothing that was launched is over

void count(const char* name) {
  const std::lock_guard lock(counts_mutex);
  ++counts()[name];
}

FakeCudaDriver& driver() {
  static FakeCudaDriver& instance = *new FakeCudaDriver;
  return instance;
}

}  // namespace

cudaError_t allocate(const char* name, void** address, size_t num_bytes) {
  count(name);
  *address = std::calloc(1, num_bytes == 0 ? 1 : num_bytes);
  return cudaSuccess;
}

}  // namespace dcomm::checks::counted

using dcomm::checks::counted::count;

#define DCOMM_COUNTED(name, parameters, ...) \
  cudaError_t name parameters {              \
    count(#name);                            \
    __VA_ARGS__;                             \
    return cudaSuccess;                      \
  }
DCOMM_COUNTED(cudaGetDevice, (int* device), *device = 0)
DCOMM_COUNTED(cudaSetDevice, (int))
DCOMM_COUNTED(cudaGetDeviceCount, (int* number), *number = 2)
DCOMM_COUNTED(cudaDriverGetVersion, (int* version), *version = CUDART_VERSION)
DCOMM_COUNTED(cudaGetDeviceProperties, (cudaDeviceProp * properties, int device),
              std::memset(properties, device, sizeof(*properties)))
DCOMM_COUNTED(cudaDeviceGetAttribute, (int* value, cudaDeviceAttr attribute, int),
              *value = attribute == cudaDevAttrL2CacheSize ? 1 << 20 : 64)
DCOMM_COUNTED(cudaDeviceGetStreamPriorityRange, (int* lowest, int* highest), *lowest = *highest = 0)
DCOMM_COUNTED(cudaDeviceCanAccessPeer, (int* can, int, int), *can = 1)
DCOMM_COUNTED(cudaPointerGetAttributes, (cudaPointerAttributes * attributes, const void*),
              *attributes = {cudaMemoryTypeDevice, 0})
DCOMM_COUNTED(cudaStreamGetCaptureInfo, (cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id),
              *status = cudaStreamCaptureStatusNone, *id = 0)
DCOMM_COUNTED(cudaStreamIsCapturing, (cudaStream_t, cudaStreamCaptureStatus* status),
              *status = cudaStreamCaptureStatusNone)
DCOMM_COUNTED(cudaThreadExchangeStreamCaptureMode, (cudaStreamCaptureMode*))
DCOMM_COUNTED(cudaEventRecord, (cudaEvent_t, cudaStream_t))
DCOMM_COUNTED(cudaEventQuery, (cudaEvent_t), if (dcomm::checks::counted::is_busy) return cudaErrorNotReady)
DCOMM_COUNTED(cudaStreamWaitEvent, (cudaStream_t, cudaEvent_t, unsigned))
DCOMM_COUNTED(cudaLaunchCooperativeKernel, (const void*, dim3, dim3, void**, size_t, cudaStream_t))
DCOMM_COUNTED(cudaFree, (void* address), std::free(address))
DCOMM_COUNTED(cudaFreeHost, (void* address), std::free(address))
DCOMM_COUNTED(cudaMemsetAsync, (void* address, int value, size_t num_bytes, cudaStream_t),
              std::memset(address, value, num_bytes))
DCOMM_COUNTED(cudaMemcpyAsync, (void* to, const void* from, size_t num_bytes, cudaMemcpyKind, cudaStream_t),
              std::memcpy(to, from, num_bytes))
DCOMM_COUNTED(cudaEventCreate, (cudaEvent_t * event), *event = new CUevent_st)
DCOMM_COUNTED(cudaEventCreateWithFlags, (cudaEvent_t * event, unsigned), *event = new CUevent_st)
DCOMM_COUNTED(cudaEventDestroy, (cudaEvent_t event), delete event)
DCOMM_COUNTED(cudaEventSynchronize, (cudaEvent_t))
DCOMM_COUNTED(cudaEventElapsedTime, (float* ms, cudaEvent_t, cudaEvent_t), *ms = 1)
DCOMM_COUNTED(cudaStreamCreateWithFlags, (cudaStream_t * stream, unsigned), *stream = new CUstream_st)
DCOMM_COUNTED(cudaStreamCreateWithPriority, (cudaStream_t * stream, unsigned, int), *stream = new CUstream_st)
DCOMM_COUNTED(cudaStreamDestroy, (cudaStream_t stream), delete stream)
DCOMM_COUNTED(cudaStreamSynchronize, (cudaStream_t))
DCOMM_COUNTED(cudaDeviceSynchronize, ())
DCOMM_COUNTED(cudaFuncGetAttributes, (cudaFuncAttributes * attributes, const void*), *attributes = {})
DCOMM_COUNTED(cudaOccupancyMaxActiveBlocksPerMultiprocessor, (int* number, const void*, int, size_t), *number = 1)

const char* cudaGetErrorName(cudaError_t) { return "an error"; }
const char* cudaGetErrorString(cudaError_t) { return "of the counting runtime"; }

namespace dcomm {

const CudaDriver& cuda_driver() {
  checks::counted::driver();
  return checks::FakeCudaDriver::table();
}

// ---- Kernels: every key of the types below has one, which does nothing.

namespace {

const std::vector<CudaKernel>& kernels() {
  static const std::vector<CudaKernel> all = [] {
    static const char function = 0;
    std::vector<CudaKernel> made;
    for (int collective = 1; collective <= static_cast<int>(Collective::kRecv); ++collective) {
      for (int algo = 0; algo <= static_cast<int>(Algo::kDirect); ++algo) {
        for (const bool variant : {false, true}) {
          for (const auto& [dtype, wire] : {std::pair{DType::kF32, DType::kF32}, std::pair{DType::kF32, DType::kBF16},
                                            std::pair{DType::kU8, DType::kU8}}) {
            const CudaKernelKey key{static_cast<Collective>(collective), static_cast<Algo>(algo), variant, dtype, wire};
            made.push_back({"kernel", &function, key, 0});
          }
        }
      }
    }
    return made;
  }();
  return all;
}

}  // namespace

CudaKernelList cuda_kernels_by_slots() { return {kernels().data(), static_cast<int>(kernels().size())}; }
CudaKernelList cuda_kernels_one_shot() { return {nullptr, 0}; }
CudaKernelList cuda_kernels_direct() { return {nullptr, 0}; }
CudaKernelList cuda_kernels_one_result() { return {nullptr, 0}; }
CudaKernelList cuda_kernels_of_integers() { return {nullptr, 0}; }
CudaKernelList cuda_kernels_of_bytes() { return {nullptr, 0}; }
CudaListKernels cuda_kernels_of_lists() { return {nullptr, 0}; }

namespace {
DcommCudaStatus absent(const CudaMessage& message) {
  return message.say(kDcommCudaInvalid, "not in the counting library: it has no device code");
}
}  // namespace

DcommCudaStatus create_cuda_list(const DcommCudaListOptions&, DcommCudaList**, const CudaMessage& message) {
  return absent(message);
}
void destroy_cuda_list(DcommCudaList*) {}
DcommCudaStatus copy_cuda_list(const DcommCudaList&, const DcommCudaListCopy&, const CudaMessage& message) {
  return absent(message);
}
DcommCudaStatus measure_launch_floor(int, double*, double*, const CudaMessage& message) { return absent(message); }

}  // namespace dcomm

// ---- For tests (tests/support/counted_gpu.py) ----

#define DCOMM_EXPORTED extern "C" __attribute__((visibility("default")))

/// "name count" lines of all that was called since the last time, the driver's calls by the name "driver".
DCOMM_EXPORTED void counted_take(char* text, size_t num_bytes) {
  using namespace dcomm::checks::counted;
  static int num_driver_calls = 0;
  const std::lock_guard lock(counts_mutex);
  std::string lines;
  for (const auto& [name, number] : counts()) lines += name + " " + std::to_string(number) + "\n";
  const int calls = driver().num_calls();
  if (calls > num_driver_calls) lines += "driver " + std::to_string(calls - num_driver_calls) + "\n";
  num_driver_calls = calls;
  counts().clear();
  std::snprintf(text, num_bytes, "%s", lines.c_str());
}

/// 1: no event is over from now on; 0: all are.
DCOMM_EXPORTED void counted_hold(int32_t busy) { dcomm::checks::counted::is_busy = busy != 0; }
