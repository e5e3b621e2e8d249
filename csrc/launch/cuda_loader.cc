#include "launch/cuda_loader.h"

#include <dlfcn.h>
#include <unistd.h>

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

Loaded load() {
  const std::string path = own_folder() + "_cuda.so";
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

}  // namespace

const DcommCudaTable& cuda_table() {
  static const Loaded loaded = load();
  DCOMM_CHECK(loaded.table != nullptr, ErrorCode::kCuda, loaded.reason);
  return *loaded.table;
}

int cuda_device_count() {
  int32_t count = 0;
  char message[512] = "";
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
