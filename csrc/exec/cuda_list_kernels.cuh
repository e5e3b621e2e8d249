// Many arrays into one and back on the device, with scale and cast in the same pass. Floor: exec.
//
// A block takes one run after the other; the runs lie in device memory, so that one launch serves any number of
// arrays and a captured graph reads nothing of the host's. Within a run both sides are contiguous, so that no pack
// needs a search. Conversions and NaNs as on the host (launch/host_pack.h).
#pragma once

#include "exec/cuda_bytes.cuh"
#include "exec/cuda_elements.cuh"
#include "protocol/elements.h"

namespace dcomm {

/// The arguments of a launch: any number of blocks.
struct CudaListJob {
  const ArrayRun* runs;  // device memory
  uint32_t num_runs;
  uint32_t element_bytes;  // where elements are copied as they are
  bool packs;              // out of the arrays into the whole; else the other way
  std::byte* whole;        // device memory
  float scale;
};

/// From, To: element types of what is read and written.
template <class From, class To>
struct CudaListConversion {
  static constexpr DType kFrom = From::kDType;
  static constexpr DType kTo = To::kDType;
  static constexpr int kFromBytes = sizeof(typename From::Stored);
  static constexpr int kToBytes = sizeof(typename To::Stored);
  static constexpr int kElements = 16 / (kFromBytes < kToBytes ? kFromBytes : kToBytes);
  static constexpr int kInFlight = kFromBytes == kToBytes ? 4 : 2;

  DCOMM_DEVICE static size_t from_bytes(const CudaListJob&) { return kFromBytes; }
  DCOMM_DEVICE static size_t to_bytes(const CudaListJob&) { return kToBytes; }
  DCOMM_DEVICE static void move(const CudaLanes& lanes, const CudaListJob& job, std::byte* to, const std::byte* from,
                                uint32_t count) {
    const float scale = job.scale;
    for_each_block<kInFlight, kElements>(
        lanes, is_pack_aligned(from, to), count,
        [&](auto width, uint32_t i) { return CudaBlock<From, width.value>::load(from, i); },
        [&](auto width, uint32_t i, const auto& read) {
          float value[width.value];
          read.widen(value);
          if (scale != 1.0f) {
            DCOMM_UNROLL
            for (int k = 0; k < width.value; ++k) value[k] = value[k] * scale;
          }
          if constexpr (kTo == DType::kF32) {  // to a half the narrowing does it
            DCOMM_UNROLL
            for (int k = 0; k < width.value; ++k) value[k] = f32_canonical(value[k]);
          }
          CudaBlock<To, width.value>::narrow(value).store(to, i);
        });
  }
};

/// Elements as they are: every dtype.
struct CudaListBytes {
  DCOMM_DEVICE static size_t from_bytes(const CudaListJob& job) { return job.element_bytes; }
  DCOMM_DEVICE static size_t to_bytes(const CudaListJob& job) { return job.element_bytes; }
  DCOMM_DEVICE static void move(const CudaLanes& lanes, const CudaListJob& job, std::byte* to, const std::byte* from,
                                uint32_t count) {
    move_bytes<16>(lanes, to, from, size_t{count} * job.element_bytes);
  }
};

template <class Conversion>
DCOMM_DEVICE void copy_list(const CudaLanes& lanes, const CudaListJob& job, uint32_t block, uint32_t num_blocks) {
  for (uint32_t i = block; i < job.num_runs; i += num_blocks) {
    const ArrayRun run = job.runs[i];
    const auto count = static_cast<uint32_t>(run.count);
    if (job.packs) {
      Conversion::move(lanes, job, job.whole + run.offset * Conversion::to_bytes(job), run.data, count);
    } else {
      Conversion::move(lanes, job, run.data, job.whole + run.offset * Conversion::from_bytes(job), count);
    }
  }
}

}  // namespace dcomm
