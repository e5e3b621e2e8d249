#include "launch/cuda_loader.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <string>

#include "base/error.h"

namespace dcomm {

namespace {

/// The folder of the library that holds this function, with its slash; "" where the system cannot say.
std::string own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&cuda_table), &info) == 0 || info.dli_fname == nullptr) return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

struct Loaded {
  const DcommCudaTable* table = nullptr;
  std::string reason;  // why there is none
};

Loaded load(const std::string& path) {
  if (access(path.c_str(), F_OK) != 0) {
    return {nullptr, "this installation of dcomm has no CUDA part (no file " + path +
                         "); use CPU arrays, or install it again where nvcc is, with DCOMM_CUDA=ON"};
  }
  // Never closed: kernels, events and streams may be in use until the process ends.
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = dlerror();
    return {nullptr, "the CUDA part of dcomm cannot be loaded (" + std::string(why == nullptr ? path.c_str() : why) +
                         "); install dcomm again on this machine"};
  }
  auto* const get_table = reinterpret_cast<DcommCudaTableFunction*>(dlsym(library, DCOMM_CUDA_TABLE_SYMBOL));
  const DcommCudaTable* const table = get_table == nullptr ? nullptr : get_table(kDcommCudaAbi);
  if (table == nullptr || table->abi != kDcommCudaAbi) {
    return {nullptr, path + " belongs to another version of dcomm (it does not know ABI " +
                         std::to_string(kDcommCudaAbi) + "); install dcomm again, both parts in one step"};
  }
  return {table, ""};
}

/// Chosen by a test; nullptr: none.
std::atomic<const DcommCudaTable*> chosen_table{nullptr};

constexpr size_t kMessageBytes = 512;

}  // namespace

const DcommCudaTable& cuda_table() {
  if (const DcommCudaTable* const chosen = chosen_table.load(std::memory_order_acquire)) return *chosen;
  static const Loaded loaded = load(own_folder() + "_cuda.so");
  DCOMM_CHECK(loaded.table != nullptr, ErrorCode::kCuda, loaded.reason);
  return *loaded.table;
}

void use_cuda_library(const std::string& path) {
  const Loaded loaded = path.empty() ? Loaded{} : load(path);
  DCOMM_CHECK(path.empty() || loaded.table != nullptr, ErrorCode::kCuda, loaded.reason);
  chosen_table.store(loaded.table, std::memory_order_release);
}

int cuda_pointer_device(const void* address) {
  int32_t device = 0;
  char message[kMessageBytes] = "";
  check_cuda(cuda_table().pointer_device(address, &device, message, sizeof(message)), message);
  return device;
}

void order_cuda_streams(int device, void* before, void* after) {
  char message[kMessageBytes] = "";
  check_cuda(cuda_table().order_streams(device, before, after, message, sizeof(message)), message);
}

CudaLaunchFloor measure_cuda_launch_floor(int device) {
  CudaLaunchFloor floor{};
  char message[kMessageBytes] = "";
  check_cuda(cuda_table().launch_floor(device, &floor.empty_launch_us, &floor.round_trip_us, message, sizeof(message)),
             message);
  return floor;
}

int cuda_device_count() {
  int32_t count = 0;
  char message[kMessageBytes] = "";
  check_cuda(cuda_table().device_count(&count, message, sizeof(message)), message);
  return count;
}

void check_cuda(int32_t status, const char* message) {
  switch (status) {
    case kDcommCudaOk:
      return;
    case kDcommCudaInvalid:
      throw Error(ErrorCode::kInvalidArgument, message);
    case kDcommCudaTimeout:
      throw Error(ErrorCode::kTimeout, message);
    default:
      throw Error(ErrorCode::kCuda, message);
  }
}

}  // namespace dcomm
