// What ranks of different processes agree on before they make windows in GPU memory: a pure function of the facts of
// all ranks, so every rank comes to the same result. Floor: launch (plain C++; no CUDA header).
#pragma once

#include <cstdint>
#include <vector>

#include "launch/cuda_api.h"
#include "launch/cuda_group.h"

namespace dcomm {

/// One rank's, as they travel.
struct CudaRankFacts {
  DcommCudaDeviceFacts device{};
  int64_t code = 0;          // ErrorCode of a rank that has no GPU to offer
  int64_t num_channels = 0;  // asked for; 0: none in particular
  int64_t max_channels = 0;  // where it is 0; 0: no limit
  uint64_t slot_bytes = 0;   // the same
  int64_t window_kinds = 0;  // that it allows: bits of DcommCudaWindowKind
};
static_assert(sizeof(CudaRankFacts) % sizeof(int64_t) == 0);

struct CudaAgreed {
  DcommCudaWindowKind kind = kDcommCudaWindowVmm;
  int num_channels = 0;
  uint64_t slot_bytes = 0;
  int num_sharing = 0;  // the most ranks that use one GPU
};

/// Throws kCuda naming the rank that has none, or whose GPU or driver cannot, and why; kInvalidArgument for slot_bytes
/// that no window can have.
CudaAgreed agree_on_cuda(const std::vector<CudaRankFacts>& facts);

/// The first rank on each GPU.
bool is_first_on_its_gpu(const std::vector<CudaRankFacts>& facts, int rank);
int count_on_gpu_of(const std::vector<CudaRankFacts>& facts, int rank);

/// DCOMM_CUDA_WINDOWS: "vmm", "ipc" or nothing (both) as bits. Throws kInvalidArgument.
int64_t allowed_window_kinds_from_environment();

}  // namespace dcomm
