#include "launch/cuda_list.h"

#include "base/error.h"
#include "launch/cuda_loader.h"

namespace dcomm {

CudaArrayList::CudaArrayList(int device, const std::vector<ChunkTable::Array>& arrays,
                             const std::vector<uint64_t>& offsets, DType dtype) {
  DCOMM_CHECK(arrays.size() == offsets.size(), ErrorCode::kInvalidArgument, "got ", arrays.size(), " arrays and ",
              offsets.size(), " offsets; pass one for each array");
  std::vector<void*> pointers;
  std::vector<uint64_t> counts;
  for (const ChunkTable::Array& array : arrays) {
    pointers.push_back(array.data);
    counts.push_back(array.count);
  }
  const DcommCudaListOptions options{
      device, static_cast<int32_t>(dtype), pointers.size(), pointers.data(), counts.data(), offsets.data()};
  char message[512] = "";
  check_cuda(cuda_table().list_create(&options, &list_, message, sizeof(message)), message);
}

CudaArrayList::~CudaArrayList() {
  if (list_ != nullptr) cuda_table().list_destroy(list_);
}

void CudaArrayList::copy(bool packs, void* whole, DType dtype, double scale, void* stream) const {
  const DcommCudaListCopy what{packs ? 1 : 0, static_cast<int32_t>(dtype), whole, scale, stream};
  char message[512] = "";
  check_cuda(cuda_table().list_copy(list_, &what, message, sizeof(message)), message);
}

}  // namespace dcomm
