// Kernels that pack many arrays into one and back, and the lists that they read. Floor: launch.
//
// Blocks are not cooperative: nobody waits for anybody. Enough of them for every multiprocessor to have its loads in
// flight, and each takes several runs, so that a long list costs no more launches than a short one.
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "bucket/chunk_table.h"
#include "exec/cuda_list_kernels.cuh"
#include "launch/cuda_kernels.h"
#include "launch/cuda_status.cuh"

struct DcommCudaList {
  int device = 0;
  dcomm::DType dtype = dcomm::DType::kF32;
  dcomm::ArrayRun* runs = nullptr;  // device memory
  uint32_t num_runs = 0;
  int max_blocks = 1;
  ~DcommCudaList() { cudaFree(runs); }
};

namespace dcomm {

inline constexpr int kBlocksPerMultiprocessor = 2;

template <class Conversion>
__global__ void __launch_bounds__(gpu::kBlockThreads, kBlocksPerMultiprocessor)
    k_list(const __grid_constant__ CudaListJob job) {
  copy_list<Conversion>(CudaLanes(), job, blockIdx.x, gridDim.x);
}

namespace {

/// Of a run: 32 KiB of float32, 4 packs of each thread of a block.
constexpr size_t kRunElements = 8192;

template <class Conversion>
const void* function_of() {
  return reinterpret_cast<const void*>(&k_list<Conversion>);
}

template <class From, class To>
CudaListKernel conversion(const char* name) {
  return {name, function_of<CudaListConversion<From, To>>(), From::kDType, To::kDType};
}

const CudaListKernel* find_list_kernel(DType from, DType to, double scale) {
  const bool as_it_is = from == to && scale == 1.0;
  const CudaListKernels kernels = cuda_kernels_of_lists();
  for (int i = 0; i < kernels.count; ++i) {
    const CudaListKernel& kernel = kernels.first[i];
    if (as_it_is ? kernel.to == DType::kU8 : kernel.from == from && kernel.to == to) return &kernel;
  }
  return nullptr;
}

/// The kernels are loaded now: not in the middle of a capture, nor while another kernel spins (lazy loading).
cudaError_t fill(DcommCudaList& list, const DcommCudaListOptions& options) {
  std::vector<ChunkTable::Array> arrays;
  for (uint64_t i = 0; i < options.num_arrays; ++i) arrays.push_back({options.arrays[i], options.counts[i]});
  const std::vector<uint64_t> offsets(options.offsets, options.offsets + options.num_arrays);
  const std::vector<ArrayRun> runs = cut_arrays(arrays, offsets, list.dtype, kRunElements);
  if (runs.size() > std::numeric_limits<uint32_t>::max()) return cudaErrorInvalidValue;
  list.num_runs = static_cast<uint32_t>(runs.size());
  int num_multiprocessors = 0;
  cudaError_t error = cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, options.device);
  list.max_blocks = kBlocksPerMultiprocessor * std::max(1, num_multiprocessors);
  const CudaListKernels kernels = cuda_kernels_of_lists();
  for (int i = 0; i < kernels.count && error == cudaSuccess; ++i) {
    cudaFuncAttributes attributes{};
    error = cudaFuncGetAttributes(&attributes, kernels.first[i].function);
  }
  if (runs.empty() || error != cudaSuccess) return error;
  const size_t nbytes = runs.size() * sizeof(ArrayRun);
  error = cudaMalloc(&list.runs, nbytes);
  if (error == cudaSuccess) error = cudaMemcpy(list.runs, runs.data(), nbytes, cudaMemcpyHostToDevice);
  return error;
}

}  // namespace

CudaListKernels cuda_kernels_of_lists() {
  static const CudaListKernel kernels[] = {
      {"list<bytes>", function_of<CudaListBytes>(), DType::kU8, DType::kU8},
      conversion<CudaF32, CudaF32>("list<f32, f32>"),
      conversion<CudaF32, CudaF16>("list<f32, f16>"),
      conversion<CudaF32, CudaBF16>("list<f32, bf16>"),
      conversion<CudaF16, CudaF32>("list<f16, f32>"),
      conversion<CudaBF16, CudaF32>("list<bf16, f32>"),
      conversion<CudaF16, CudaF16>("list<f16, f16>"),
      conversion<CudaBF16, CudaBF16>("list<bf16, bf16>"),
  };
  return {kernels, static_cast<int>(std::size(kernels))};
}

DcommCudaStatus create_cuda_list(const DcommCudaListOptions& options, DcommCudaList** made,
                                 const CudaMessage& message) {
  int num_devices = 0;
  const DcommCudaStatus status = count_cuda_devices(&num_devices, message);
  if (status != kDcommCudaOk) return status;
  const ScopedDevice scope(options.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  auto list = std::make_unique<DcommCudaList>();
  list->device = options.device;
  list->dtype = static_cast<DType>(options.dtype);
  const cudaError_t error = fill(*list, options);
  if (error != cudaSuccess) return message.failed("list_create", error);
  *made = list.release();
  return kDcommCudaOk;
}

void destroy_cuda_list(DcommCudaList* list) {
  const ScopedDevice scope(list->device);
  delete list;
}

DcommCudaStatus copy_cuda_list(const DcommCudaList& list, const DcommCudaListCopy& copy, const CudaMessage& message) {
  const bool packs = copy.packs != 0;
  const auto whole_dtype = static_cast<DType>(copy.whole_dtype);
  const DType from = packs ? list.dtype : whole_dtype;
  const DType to = packs ? whole_dtype : list.dtype;
  const CudaListKernel* const kernel = find_list_kernel(from, to, copy.scale);
  if (kernel == nullptr) {
    return message.say(kDcommCudaInvalid,
                       "no kernel from %s to %s with scale %g: expected equal dtypes with scale 1, or float32, float16 "
                       "and bfloat16, of which one is float32 or both are equal; convert one of them first",
                       dtype_name(from), dtype_name(to), copy.scale);
  }
  if (list.num_runs == 0) return kDcommCudaOk;
  const ScopedDevice scope(list.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  CudaListJob job{};
  job.runs = list.runs;
  job.num_runs = list.num_runs;
  job.element_bytes = static_cast<uint32_t>(dtype_bytes(list.dtype));
  job.packs = packs;
  job.whole = static_cast<std::byte*>(copy.whole);
  job.scale = static_cast<float>(copy.scale);
  void* arguments[] = {&job};
  const dim3 grid(std::min(list.num_runs, static_cast<uint32_t>(list.max_blocks)));
  const cudaError_t error = cudaLaunchKernel(kernel->function, grid, dim3(gpu::kBlockThreads), arguments, 0,
                                             static_cast<cudaStream_t>(copy.stream));
  return error == cudaSuccess ? kDcommCudaOk : message.failed("list_copy", error);
}

}  // namespace dcomm
