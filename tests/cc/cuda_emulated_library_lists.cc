// Lists of arrays on the emulated GPU: the kernels' text, one block.
#include <memory>
#include <thread>
#include <vector>

#include "bucket/chunk_table.h"
#include "cuda_emulated_group.h"
#include "cuda_emulated_library.h"
#include "cuda_emulated_streams.h"
#include "exec/cuda_list_kernels.cuh"

struct DcommCudaList {
  dcomm::DType dtype;
  std::vector<dcomm::ArrayRun> runs;
};

namespace dcomm::checks::cuda {
namespace {

using Copy = void (*)(const CudaLanes&, const CudaListJob&, uint32_t, uint32_t);

template <class From, class To>
void take_if_converts(DType from, DType to, Copy& found) {
  if (From::kDType == from && To::kDType == to) found = &copy_list<CudaListConversion<From, To>>;
}

Copy find_copy(DType from, DType to, double scale) {
  if (from == to && scale == 1.0) return &copy_list<CudaListBytes>;
  Copy found = nullptr;
  take_if_converts<CudaF32, CudaF32>(from, to, found);
  take_if_converts<CudaF32, CudaF16>(from, to, found);
  take_if_converts<CudaF32, CudaBF16>(from, to, found);
  take_if_converts<CudaF16, CudaF32>(from, to, found);
  take_if_converts<CudaBF16, CudaF32>(from, to, found);
  take_if_converts<CudaF16, CudaF16>(from, to, found);
  take_if_converts<CudaBF16, CudaBF16>(from, to, found);
  return found;
}

}  // namespace

int32_t create_list(const DcommCudaListOptions* options, DcommCudaList** list, char*, size_t) {
  std::vector<ChunkTable::Array> arrays;
  for (uint64_t i = 0; i < options->num_arrays; ++i) arrays.push_back({options->arrays[i], options->counts[i]});
  const auto dtype = static_cast<DType>(options->dtype);
  const std::vector<uint64_t> offsets(options->offsets, options->offsets + options->num_arrays);
  *list = new DcommCudaList{dtype, cut_arrays(arrays, offsets, dtype, 128)};
  return kDcommCudaOk;
}

void destroy_list(DcommCudaList* list) { delete list; }

int32_t copy_list_of(const DcommCudaList* list, const DcommCudaListCopy* copy, char* text, size_t num_bytes) {
  const bool packs = copy->packs != 0;
  const auto whole_dtype = static_cast<DType>(copy->whole_dtype);
  const Copy body =
      packs ? find_copy(list->dtype, whole_dtype, copy->scale) : find_copy(whole_dtype, list->dtype, copy->scale);
  Stream* const stream = Streams::instance().find(copy->stream);
  if (body == nullptr) return Message(text, num_bytes).say(kDcommCudaInvalid, "no kernel for these dtypes and scale");
  if (stream == nullptr) return Message(text, num_bytes).no_stream(copy->stream);
  const CudaListJob job{list->runs.data(),
                        static_cast<uint32_t>(list->runs.size()),
                        static_cast<uint32_t>(dtype_bytes(list->dtype)),
                        packs,
                        static_cast<std::byte*>(copy->whole),
                        static_cast<float>(copy->scale)};
  stream->enqueue([body, job] {
    std::vector<std::thread> threads;
    for (int lane = 0; lane < gpu::kBlockThreads; ++lane) {
      threads.emplace_back([&, lane] {
        gpu::current_thread = lane;
        body(CudaLanes(), job, 0, 1);
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  return kDcommCudaOk;
}

}  // namespace dcomm::checks::cuda
