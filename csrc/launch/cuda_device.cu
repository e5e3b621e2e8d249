// What a GPU is and can: presence, kernels, copy bandwidth. Floor: launch.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "launch/cuda_kernels.h"
#include "launch/cuda_status.cuh"

namespace dcomm {

DcommCudaStatus count_cuda_devices(int* count, const CudaMessage& message) {
  *count = 0;
  const cudaError_t error = cudaGetDeviceCount(count);
  if (error == cudaSuccess && *count > 0) return kDcommCudaOk;
  if (error == cudaSuccess || error == cudaErrorNoDevice) {
    const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return message.say(kDcommCudaNoDevice, "no GPU is visible to this process (CUDA_VISIBLE_DEVICES is %s%s%s); %s",
                       visible == nullptr ? "unset" : "'", visible == nullptr ? "" : visible,
                       visible == nullptr ? "" : "'", "use CPU arrays, or make a GPU visible");
  }
  if (error == cudaErrorInsufficientDriver) {
    int version = 0;
    if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
      return message.say(kDcommCudaNoDevice,
                         "no NVIDIA driver was found on this machine; use CPU arrays, or install a driver for CUDA "
                         "%d.%d or later",
                         CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    }
    return message.say(kDcommCudaNoDevice,
                       "the NVIDIA driver supports CUDA %d.%d, but this build needs %d.%d; update the driver, or use "
                       "CPU arrays",
                       version / 1000, version % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  }
  return message.failed("cudaGetDeviceCount", error);
}

DcommCudaStatus describe_cuda_kernel(int device, uint32_t index, DcommCudaKernelInfo* info,
                                     const CudaMessage& message) {
  const auto num_ranked = static_cast<uint32_t>(num_cuda_kernels());
  const CudaListKernels lists = cuda_kernels_of_lists();
  if (index >= num_ranked + static_cast<uint32_t>(lists.count)) {
    return message.say(kDcommCudaInvalid, "kernel %u of %u", index, num_ranked + static_cast<uint32_t>(lists.count));
  }
  const ScopedDevice scope(device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  const bool is_ranked = index < num_ranked;
  const char* const name = is_ranked ? cuda_kernel(static_cast<int>(index)).name : lists.first[index - num_ranked].name;
  const void* const function =
      is_ranked ? cuda_kernel(static_cast<int>(index)).function : lists.first[index - num_ranked].function;
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, function);
  if (error != cudaSuccess) return message.failed(name, error);
  std::snprintf(info->name, sizeof(info->name), "%s", name);
  info->num_registers = attributes.numRegs;
  info->local_bytes = static_cast<int32_t>(attributes.localSizeBytes);
  info->shared_bytes = static_cast<int32_t>(attributes.sharedSizeBytes);
  info->max_threads = attributes.maxThreadsPerBlock;
  return kDcommCudaOk;
}

namespace {

/// Two buffers, a stream and two events; whatever was made is freed.
struct CopyProbe {
  void* from = nullptr;
  void* to = nullptr;
  cudaStream_t stream = nullptr;
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;

  cudaError_t prepare(size_t nbytes) {
    cudaError_t error = cudaMalloc(&from, nbytes);
    if (error == cudaSuccess) error = cudaMalloc(&to, nbytes);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaEventCreate(&start);
    if (error == cudaSuccess) error = cudaEventCreate(&stop);
    if (error == cudaSuccess) error = cudaMemsetAsync(from, 1, nbytes, stream);
    return error;
  }
  cudaError_t copy(size_t nbytes, float* elapsed_ms) {
    cudaError_t error = cudaEventRecord(start, stream);
    if (error == cudaSuccess) error = cudaMemcpyAsync(to, from, nbytes, cudaMemcpyDeviceToDevice, stream);
    if (error == cudaSuccess) error = cudaEventRecord(stop, stream);
    if (error == cudaSuccess) error = cudaEventSynchronize(stop);
    if (error == cudaSuccess) error = cudaEventElapsedTime(elapsed_ms, start, stop);
    return error;
  }
  ~CopyProbe() {
    if (stop != nullptr) cudaEventDestroy(stop);
    if (start != nullptr) cudaEventDestroy(start);
    if (stream != nullptr) cudaStreamDestroy(stream);
    cudaFree(to);
    cudaFree(from);
  }
};

}  // namespace

DcommCudaStatus measure_copy_bandwidth(int device, uint64_t nbytes, double* bytes_per_second,
                                       const CudaMessage& message) {
  if (nbytes == 0) return message.say(kDcommCudaInvalid, "copy_bandwidth: nbytes must be positive");
  const ScopedDevice scope(device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  CopyProbe probe;
  float elapsed_ms[11];
  cudaError_t error = probe.prepare(nbytes);
  for (int warm_up = 0; warm_up < 3 && error == cudaSuccess; ++warm_up) error = probe.copy(nbytes, elapsed_ms);
  for (float& ms : elapsed_ms) {
    if (error == cudaSuccess) error = probe.copy(nbytes, &ms);
  }
  if (error != cudaSuccess) return message.failed("copy_bandwidth", error);
  std::sort(std::begin(elapsed_ms), std::end(elapsed_ms));
  const double median_s = static_cast<double>(elapsed_ms[5]) * 1e-3;
  *bytes_per_second = 2.0 * static_cast<double>(nbytes) / median_s;
  return kDcommCudaOk;
}

}  // namespace dcomm
