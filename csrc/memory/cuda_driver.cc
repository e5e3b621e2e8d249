// The driver's functions, asked for by name and version: libcuda is not linked, so _cuda.so loads without it.
// Floor: memory.
#include "memory/cuda_driver.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include "base/error.h"

namespace dcomm {
namespace {

/// Pointers with the types of the functions as cuda.h declares them.
struct Functions {
  decltype(&cuMemGetAllocationGranularity) granularity;
  decltype(&cuMemCreate) create;
  decltype(&cuMemRelease) release;
  decltype(&cuMemExportToShareableHandle) export_handle;
  decltype(&cuMemImportFromShareableHandle) import_handle;
  decltype(&cuMemAddressReserve) reserve;
  decltype(&cuMemAddressFree) unreserve;
  decltype(&cuMemMap) map;
  decltype(&cuMemUnmap) unmap;
  decltype(&cuMemSetAccess) set_access;
  decltype(&cuMemAlloc) allocate;
  decltype(&cuMemFree) deallocate;
  decltype(&cuIpcGetMemHandle) ipc_export;
  decltype(&cuIpcOpenMemHandle) ipc_open;
  decltype(&cuIpcCloseMemHandle) ipc_close;
  decltype(&cuGetErrorString) error_text;
};

std::string version_text(int version) {
  return std::to_string(version / 1000) + '.' + std::to_string(version % 1000 / 10);
}

/// version: of CUDA, in which the function got the signature that is used here.
template <class Function>
void find(const char* name, unsigned version, Function* function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult answer = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &answer);
  int driver = 0;
  cudaDriverGetVersion(&driver);
  DCOMM_CHECK(driver != 0, ErrorCode::kCuda, "no NVIDIA driver was found on this machine; use CPU arrays");
  DCOMM_CHECK(error == cudaSuccess && answer == cudaDriverEntryPointSuccess && found != nullptr, ErrorCode::kCuda,
              "driver too old: it supports CUDA ", version_text(driver), ", ", name, " needs ",
              version_text(static_cast<int>(version)), "; update the driver, or use CPU arrays");
  *function = reinterpret_cast<Function>(found);
}

Functions find_all() {
  Functions f{};
  find("cuMemGetAllocationGranularity", 10020, &f.granularity);
  find("cuMemCreate", 10020, &f.create);
  find("cuMemRelease", 10020, &f.release);
  find("cuMemExportToShareableHandle", 10020, &f.export_handle);
  find("cuMemImportFromShareableHandle", 10020, &f.import_handle);
  find("cuMemAddressReserve", 10020, &f.reserve);
  find("cuMemAddressFree", 10020, &f.unreserve);
  find("cuMemMap", 10020, &f.map);
  find("cuMemUnmap", 10020, &f.unmap);
  find("cuMemSetAccess", 10020, &f.set_access);
  find("cuMemAlloc", 3020, &f.allocate);
  find("cuMemFree", 3020, &f.deallocate);
  find("cuIpcGetMemHandle", 4010, &f.ipc_export);
  find("cuIpcOpenMemHandle", 11000, &f.ipc_open);
  find("cuIpcCloseMemHandle", 4010, &f.ipc_close);
  find("cuGetErrorString", 6000, &f.error_text);
  return f;
}

const Functions& functions() {
  static const Functions found = find_all();  // an exception leaves it to the next call
  return found;
}

CUmemAllocationProp properties(int device) {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  prop.location.id = device;
  return prop;
}

/// On a stream of its own: the default stream would wait for the caller's others.
int zero(uintptr_t address, size_t num_bytes) {
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return static_cast<int>(error);
  error = cudaMemsetAsync(reinterpret_cast<void*>(address), 0, num_bytes, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  return static_cast<int>(error);
}

const char* error_text(int result) {
  const char* text = nullptr;
  functions().error_text(static_cast<CUresult>(result), &text);
  return text;
}

constexpr CudaDriver kDriver = {
    [](int device, size_t* num_bytes) -> int {
      const CUmemAllocationProp prop = properties(device);
      return functions().granularity(num_bytes, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    },
    [](int device, size_t num_bytes, uint64_t* memory) -> int {
      const CUmemAllocationProp prop = properties(device);
      CUmemGenericAllocationHandle handle = 0;
      const int result = functions().create(&handle, num_bytes, &prop, 0);
      *memory = handle;
      return result;
    },
    [](uint64_t memory) -> int { return functions().release(memory); },
    [](uint64_t memory, int* descriptor) -> int {
      return functions().export_handle(descriptor, memory, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    },
    [](int descriptor, uint64_t* memory) -> int {
      CUmemGenericAllocationHandle handle = 0;
      const int result = functions().import_handle(&handle, reinterpret_cast<void*>(static_cast<intptr_t>(descriptor)),
                                                   CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
      *memory = handle;
      return result;
    },
    [](size_t num_bytes, uintptr_t* address) -> int {
      CUdeviceptr reserved = 0;
      const int result = functions().reserve(&reserved, num_bytes, 0, 0, 0);
      *address = static_cast<uintptr_t>(reserved);
      return result;
    },
    [](uintptr_t address, size_t num_bytes) -> int { return functions().unreserve(address, num_bytes); },
    [](uintptr_t address, size_t num_bytes, uint64_t memory) -> int {
      return functions().map(address, num_bytes, 0, memory, 0);
    },
    [](uintptr_t address, size_t num_bytes) -> int { return functions().unmap(address, num_bytes); },
    [](uintptr_t address, size_t num_bytes, int device) -> int {
      CUmemAccessDesc access{};
      access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
      access.location.id = device;
      access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
      return functions().set_access(address, num_bytes, &access, 1);
    },
    [](size_t num_bytes, uintptr_t* address) -> int {
      CUdeviceptr allocated = 0;
      const int result = functions().allocate(&allocated, num_bytes);
      *address = static_cast<uintptr_t>(allocated);
      return result;
    },
    [](uintptr_t address) -> int { return functions().deallocate(address); },
    [](uintptr_t address, unsigned char* handle) -> int {
      static_assert(sizeof(CUipcMemHandle) == kCudaIpcBytes);
      return functions().ipc_export(reinterpret_cast<CUipcMemHandle*>(handle), address);
    },
    [](const unsigned char* handle, uintptr_t* address) -> int {
      CUipcMemHandle copy;
      __builtin_memcpy(&copy, handle, sizeof(copy));
      CUdeviceptr opened = 0;
      const int result = functions().ipc_open(&opened, copy, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
      *address = static_cast<uintptr_t>(opened);
      return result;
    },
    [](uintptr_t address) -> int { return functions().ipc_close(address); },
    &zero,
    &error_text,
};
static_assert(CUDA_ERROR_OUT_OF_MEMORY == kCudaResultOutOfMemory);

}  // namespace

const CudaDriver& cuda_driver() {
  functions();
  return kDriver;
}

}  // namespace dcomm
