// What tools/run_mutations.py breaks in the CUDA executor: emulated blocks of several threads, two slots, and ranks
// that launch at their own times.
#include "cuda_process_ranks.h"

namespace dcomm::checks::cuda {
namespace {

/// Some mutations end in a wait for ever.
constexpr uint64_t kHangNs = 10'000'000'000;

void repeat(int n, Collective collective, Algo algo, size_t count) {
  ProcessRanks ranks(n, 1, 256);
  std::vector<CollectiveCall> calls;
  for (size_t i = 0; i < 12; ++i) {
    CollectiveCall call;
    call.collective = collective;
    call.algo = algo;
    call.dtype = call.wire = DType::kF32;
    call.count = count + i;
    calls.push_back(call);
  }
  compare_sequence(ranks, calls, static_cast<uint64_t>(n), kHangNs);
}

/// Segments of 64 elements: each chunk is several messages.
CHECK_CASE(cuda_protocol_ring) { repeat(3, Collective::kAllReduce, Algo::kRing, 1000); }

CHECK_CASE(cuda_protocol_two_shot) { repeat(3, Collective::kAllReduce, Algo::kTwoShot, 1000); }

CHECK_CASE(cuda_protocol_tree) { repeat(3, Collective::kAllReduce, Algo::kTree, 1000); }

/// A root that nobody holds up is many messages ahead.
CHECK_CASE(cuda_protocol_broadcast) { repeat(2, Collective::kBroadcast, Algo::kFlat, 15000); }

CHECK_CASE(cuda_protocol_all_gather) { repeat(3, Collective::kAllGather, Algo::kFlat, 500); }

CHECK_CASE(cuda_protocol_packets) {
  for (int again = 0; again < 3; ++again) repeat(3, Collective::kAllReduce, Algo::kOneShot, 40);
}

}  // namespace
}  // namespace dcomm::checks::cuda
