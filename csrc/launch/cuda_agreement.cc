#include "launch/cuda_agreement.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "launch/cuda_plan.h"

namespace dcomm {

namespace {

bool share_gpu(const CudaRankFacts& a, const CudaRankFacts& b) {
  return std::memcmp(a.device.uuid, b.device.uuid, sizeof(a.device.uuid)) == 0;
}

/// The better kind that all ranks can, never another one on some.
DcommCudaWindowKind agree_on_kind(const std::vector<CudaRankFacts>& facts) {
  const auto lacking = [&](DcommCudaWindowKind kind) {
    return std::find_if(facts.begin(), facts.end(), [kind](const CudaRankFacts& rank) {
      return (rank.device.window_kinds & rank.window_kinds & kind) == 0;
    });
  };
  const auto without_vmm = lacking(kDcommCudaWindowVmm);
  if (without_vmm == facts.end()) return kDcommCudaWindowVmm;
  const auto without_ipc = lacking(kDcommCudaWindowIpc);
  if (without_ipc == facts.end()) return kDcommCudaWindowIpc;
  const auto reason = [](const CudaRankFacts& rank, DcommCudaWindowKind kind) {
    if ((rank.window_kinds & kind) == 0) return std::string("DCOMM_CUDA_WINDOWS excludes it");
    return rank.device.why_not[0] == '\0' ? std::string("its driver refuses") : std::string(rank.device.why_not);
  };
  throw_error(ErrorCode::kCuda, "the ranks have no way in common to map each other's GPU memory: rank ",
              without_vmm - facts.begin(), " cannot pass a descriptor (", reason(*without_vmm, kDcommCudaWindowVmm),
              "), rank ", without_ipc - facts.begin(), " has no legacy IPC handle (",
              reason(*without_ipc, kDcommCudaWindowIpc),
              "); use CPU arrays, or ranks that are threads of one process (dcomm.init_threads)");
}

}  // namespace

int count_on_gpu_of(const std::vector<CudaRankFacts>& facts, int rank) {
  const CudaRankFacts& own = facts[static_cast<size_t>(rank)];
  return static_cast<int>(
      std::count_if(facts.begin(), facts.end(), [&](const CudaRankFacts& other) { return share_gpu(own, other); }));
}

bool is_first_on_its_gpu(const std::vector<CudaRankFacts>& facts, int rank) {
  return std::none_of(facts.begin(), facts.begin() + rank,
                      [&](const CudaRankFacts& other) { return share_gpu(facts[static_cast<size_t>(rank)], other); });
}

CudaAgreed agree_on_cuda(const std::vector<CudaRankFacts>& facts) {
  for (size_t rank = 0; rank < facts.size(); ++rank) {
    DCOMM_CHECK(facts[rank].code == 0, static_cast<ErrorCode>(facts[rank].code), "rank ", rank,
                " has no GPU to offer; its own error says why. This communicator still serves CPU arrays");
  }
  const int world_size = static_cast<int>(facts.size());
  CudaAgreed agreed;
  agreed.kind = agree_on_kind(facts);
  agreed.num_channels = std::numeric_limits<int>::max();
  agreed.slot_bytes = std::numeric_limits<uint64_t>::max();
  for (int rank = 0; rank < world_size; ++rank) {
    const CudaRankFacts& own = facts[static_cast<size_t>(rank)];
    const int num_sharing = count_on_gpu_of(facts, rank);
    const int channels = own.num_channels != 0 ? static_cast<int>(own.num_channels)
                                               : choose_cuda_channels(own.device.resident_blocks, num_sharing,
                                                                      static_cast<int>(own.max_channels));
    DCOMM_CHECK(static_cast<int64_t>(channels) * num_sharing <= own.device.resident_blocks, ErrorCode::kCuda, "rank ",
                rank, "'s GPU, which ", num_sharing, " ranks use, holds ", own.device.resident_blocks,
                " thread blocks at once, but they need ", channels, " each; ",
                own.num_channels > 1 ? "choose fewer channels (DCOMM_CUDA_CHANNELS)" : "start fewer ranks on it");
    agreed.num_channels = std::min(agreed.num_channels, channels);
    agreed.num_sharing = std::max(agreed.num_sharing, num_sharing);
  }
  for (int rank = 0; rank < world_size; ++rank) {
    const CudaRankFacts& own = facts[static_cast<size_t>(rank)];
    DCOMM_CHECK(own.slot_bytes == 0 || is_cuda_slot_bytes(own.slot_bytes), ErrorCode::kInvalidArgument,
                "DCOMM_CUDA_SLOT_BYTES is ", own.slot_bytes, " on rank ", rank, ", expected a multiple of ",
                kCudaMinSlotBytes, " up to 1 GiB");
    const uint64_t slot_bytes = own.slot_bytes != 0
                                    ? own.slot_bytes
                                    : choose_cuda_slot_bytes(own.device.l2_bytes, count_on_gpu_of(facts, rank),
                                                             world_size, agreed.num_channels);
    agreed.slot_bytes = std::min(agreed.slot_bytes, slot_bytes);
  }
  return agreed;
}

int64_t allowed_window_kinds_from_environment() {
  const char* const value = std::getenv("DCOMM_CUDA_WINDOWS");
  const std::string text = value == nullptr ? "" : value;
  DCOMM_CHECK(text.empty() || text == "vmm" || text == "ipc", ErrorCode::kInvalidArgument, "DCOMM_CUDA_WINDOWS='", text,
              "': expected vmm or ipc");
  if (text.empty()) return kDcommCudaWindowVmm | kDcommCudaWindowIpc;
  return text == "vmm" ? kDcommCudaWindowVmm : kDcommCudaWindowIpc;
}

}  // namespace dcomm
