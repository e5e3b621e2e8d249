// The kernels that pack lists of arrays, on emulated blocks: the host's bits, whatever the alignment.
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bucket/chunk_table.h"
#include "check.h"
#include "cuda_emulated_group.h"
#include "exec/cuda_list_kernels.cuh"
#include "launch/host_pack.h"

namespace dcomm::checks::cuda {
namespace {

/// Floats of every kind; of other types, bytes.
void fill_array(uint64_t seed, DType dtype, std::byte* to, size_t count) {
  Numbers numbers(seed);
  if (dtype == DType::kF32 || is_half(dtype)) return numbers.fill(dtype, to, count);
  for (size_t i = 0; i < count * dtype_bytes(dtype); ++i) to[i] = static_cast<std::byte>(numbers.next());
}

/// Arrays with guards, their places in a whole that may have gaps, and the whole.
struct List {
  List(DType dtype_, const std::vector<size_t>& counts, size_t shift, size_t align, size_t whole_bytes,
       size_t whole_shift)
      : dtype(dtype_) {
    for (const size_t count : counts) {
      arrays.push_back(std::make_unique<Array>(count * dtype_bytes(dtype), shift * dtype_bytes(dtype)));
      offsets.push_back(count_with_gaps);
      count_with_gaps += (count + align - 1) / align * align;
      table.push_back({arrays.back()->memory, count});
    }
    whole = std::make_unique<Array>(count_with_gaps * whole_bytes, whole_shift * whole_bytes);
  }
  bool guards_intact() const {
    const auto intact = [](const std::unique_ptr<Array>& array) { return array->guards_intact(); };
    return std::all_of(arrays.begin(), arrays.end(), intact) && whole->guards_intact();
  }
  void fill() const {
    for (size_t i = 0; i < arrays.size(); ++i) fill_array(i * 7 + 1, dtype, arrays[i]->memory, table[i].count);
  }

  DType dtype;
  std::vector<std::unique_ptr<Array>> arrays;
  std::vector<ChunkTable::Array> table;
  std::vector<uint64_t> offsets;
  size_t count_with_gaps = 0;
  std::unique_ptr<Array> whole;
};

/// A grid of the kernel; blocks need not run at the same time.
template <class Conversion>
void run_list(const List& list, bool packs, double scale, size_t most, int num_blocks) {
  const std::vector<ArrayRun> runs = cut_arrays(list.table, list.offsets, list.dtype, most);
  const CudaListJob job{
      runs.data(),        static_cast<uint32_t>(runs.size()), static_cast<uint32_t>(dtype_bytes(list.dtype)), packs,
      list.whole->memory, static_cast<float>(scale)};
  std::vector<std::thread> threads;
  for (int block = 0; block < num_blocks; ++block) {
    for (int lane = 0; lane < gpu::kBlockThreads; ++lane) {
      threads.emplace_back([&, block, lane] {
        gpu::current_thread = lane;
        copy_list<Conversion>(CudaLanes(), job, static_cast<uint32_t>(block), static_cast<uint32_t>(num_blocks));
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

/// Packs and unpacks the same list with the kernel and with the host's tile functions.
template <class Pack, class Unpack>
void compare_list(DType dtype, DType whole_dtype, double scale, size_t shift, size_t align) {
  const std::vector<size_t> counts = {37, 0, 64, 1, 1000, 16, 333};
  const KernelTable& tables = *select_kernel_table(nullptr);
  const size_t whole_bytes = dtype_bytes(whole_dtype);
  const List device(dtype, counts, shift, align, whole_bytes, shift);
  device.fill();
  run_list<Pack>(device, true, scale, 128, 3);
  EXPECT(device.guards_intact());
  const List back(dtype, counts, shift, align, whole_bytes, shift);
  fill_array(5, whole_dtype, back.whole->memory, back.count_with_gaps);
  run_list<Unpack>(back, false, scale, 100, 2);
  EXPECT(back.guards_intact());
  for (size_t i = 0; i < counts.size(); ++i) {
    const ChunkTable one({device.table[i]}, dtype);
    std::vector<std::byte> expected(counts[i] * whole_bytes + 1);  // none is at no address
    pack_arrays(one, expected.data(), whole_dtype, scale, tables);
    const std::byte* const found = device.whole->memory + device.offsets[i] * whole_bytes;
    const std::string what = std::string(dtype_name(dtype)) + " and " + dtype_name(whole_dtype) + ", scale " +
                             std::to_string(scale) + ", array " + std::to_string(i);
    EXPECT_MSG(std::memcmp(found, expected.data(), expected.size() - 1) == 0, "pack: " + what);

    std::vector<std::byte> part(counts[i] * dtype_bytes(dtype) + 1);
    const ChunkTable target({{part.data(), counts[i]}}, dtype);
    unpack_arrays(back.whole->memory + back.offsets[i] * whole_bytes, whole_dtype, target, scale, tables);
    EXPECT_MSG(std::memcmp(back.arrays[i]->memory, part.data(), part.size() - 1) == 0, "unpack: " + what);
  }
}

template <class Type, class Whole>
void compare_all_ways() {
  for (const double scale : {1.0, 0.3, 1.0 / 3}) {
    if (scale == 1.0 && Type::kDType == Whole::kDType) continue;  // copied as bytes
    for (const auto& [shift, align] : {std::pair<size_t, size_t>{0, 16}, {0, 1}, {1, 16}, {3, 1}}) {
      compare_list<CudaListConversion<Type, Whole>, CudaListConversion<Whole, Type>>(Type::kDType, Whole::kDType, scale,
                                                                                     shift, align);
    }
  }
}

}  // namespace

CHECK_CASE(cuda_lists_convert_as_the_host) {
  compare_all_ways<CudaF32, CudaF32>();
  compare_all_ways<CudaF32, CudaF16>();
  compare_all_ways<CudaF32, CudaBF16>();
  compare_all_ways<CudaF16, CudaF32>();
  compare_all_ways<CudaBF16, CudaF32>();
  compare_all_ways<CudaF16, CudaF16>();
  compare_all_ways<CudaBF16, CudaBF16>();
}

CHECK_CASE(cuda_lists_copy_every_dtype) {
  for (int d = 0; d < kNumDTypes; ++d) {
    const auto dtype = static_cast<DType>(d);
    if (is_complex(dtype)) continue;  // as twice as many components
    for (const auto& [shift, align] : {std::pair<size_t, size_t>{0, 16}, {0, 1}, {1, 16}, {3, 1}}) {
      compare_list<CudaListBytes, CudaListBytes>(dtype, dtype, 1.0, shift, align);
    }
  }
}

CHECK_CASE(cuda_lists_are_cut_into_runs) {
  float memory[100];
  for (size_t most = 1; most <= 40; most += 3) {
    const std::vector<ChunkTable::Array> arrays = {
        {memory, 33}, {memory + 40, 0}, {memory + 50, most}, {memory + 90, 1}};
    const std::vector<uint64_t> offsets = {0, 48, 64, 128};
    size_t array = 0;
    size_t done = 0;
    for (const ArrayRun& run : cut_arrays(arrays, offsets, DType::kF32, most)) {
      while (done == arrays[array].count) ++array, done = 0;
      EXPECT(run.count >= 1 && run.count <= most);
      EXPECT_EQ(run.offset, offsets[array] + done);
      EXPECT(run.data == static_cast<std::byte*>(arrays[array].data) + done * sizeof(float));
      done += run.count;
      EXPECT(done == arrays[array].count || run.count == most);
    }
    EXPECT(array == 3 && done == 1);
  }
}

}  // namespace dcomm::checks::cuda
