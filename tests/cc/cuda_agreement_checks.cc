// What ranks of different processes agree on, and what one of them does around its launches: without a GPU.
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "cuda_fake_table.h"
#include "launch/cuda_agreement.h"
#include "launch/cuda_process_group.h"
#include "protocol/fingerprint.h"

namespace dcomm::checks {
namespace {

constexpr int kBoth = kDcommCudaWindowVmm | kDcommCudaWindowIpc;

/// A rank on GPU number `gpu`.
CudaRankFacts facts_of(int gpu, int kinds = kBoth, int resident = 132) {
  CudaRankFacts facts;
  facts.device.uuid[0] = static_cast<unsigned char>(gpu);
  facts.device.window_kinds = kinds;
  facts.device.resident_blocks = resident;
  facts.device.l2_bytes = uint64_t{50} << 20;
  facts.window_kinds = kBoth;
  return facts;
}

CHECK_CASE(cuda_agreement_takes_one_kind_for_all) {
  EXPECT_EQ(agree_on_cuda({facts_of(0), facts_of(1), facts_of(2)}).kind, kDcommCudaWindowVmm);
  for (const int lacking : {0, 1, 2}) {
    std::vector<CudaRankFacts> facts = {facts_of(0), facts_of(1), facts_of(2)};
    facts[static_cast<size_t>(lacking)].device.window_kinds = kDcommCudaWindowIpc;
    EXPECT_EQ(agree_on_cuda(facts).kind, kDcommCudaWindowIpc);
    facts[static_cast<size_t>(lacking)] = facts_of(lacking);
    facts[static_cast<size_t>(lacking)].window_kinds = kDcommCudaWindowIpc;  // its environment says so
    EXPECT_EQ(agree_on_cuda(facts).kind, kDcommCudaWindowIpc);
  }
}

CHECK_CASE(cuda_agreement_names_who_cannot) {
  std::vector<CudaRankFacts> facts = {facts_of(0), facts_of(1, kDcommCudaWindowIpc), facts_of(2, kDcommCudaWindowVmm)};
  std::snprintf(facts[1].device.why_not, sizeof(facts[1].device.why_not), "cuMemCreate failed");
  Result result = attempt([&] { agree_on_cuda(facts); });
  EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kCuda));
  EXPECT_MSG(contains(result.message, "rank 1 cannot pass a descriptor (cuMemCreate failed)") &&
                 contains(result.message, "rank 2 has no legacy IPC handle") &&
                 contains(result.message, "use CPU arrays"),
             result.message);
  facts = {facts_of(0), facts_of(1)};
  facts[1].code = static_cast<int64_t>(ErrorCode::kCuda);
  result = attempt([&] { agree_on_cuda(facts); });
  EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kCuda));
  EXPECT_MSG(contains(result.message, "rank 1 has no GPU to offer"), result.message);
}

CHECK_CASE(cuda_agreement_on_the_shape) {
  CudaAgreed agreed = agree_on_cuda({facts_of(0), facts_of(1)});
  EXPECT_EQ(agreed.num_channels, 32);
  EXPECT_EQ(agreed.num_sharing, 1);
  EXPECT_EQ(agreed.slot_bytes, uint64_t{131072});
  // The smallest GPU decides, and where ranks share one, all their blocks must be resident.
  EXPECT_EQ(agree_on_cuda({facts_of(0), facts_of(1, kBoth, 20)}).num_channels, 20);
  agreed = agree_on_cuda({facts_of(0, kBoth, 40), facts_of(0, kBoth, 40), facts_of(1)});
  EXPECT_EQ(agreed.num_channels, 20);
  EXPECT_EQ(agreed.num_sharing, 2);
  std::vector<CudaRankFacts> limited = {facts_of(0), facts_of(1)};
  limited[1].max_channels = 5;
  EXPECT_EQ(agree_on_cuda(limited).num_channels, 5);
  limited[1].max_channels = 500;  // a limit, not a wish
  EXPECT_EQ(agree_on_cuda(limited).num_channels, 32);
  // What is asked for, the smallest of it.
  std::vector<CudaRankFacts> facts = {facts_of(0), facts_of(1), facts_of(2)};
  facts[1].num_channels = 7;
  facts[2].slot_bytes = 8192;
  agreed = agree_on_cuda(facts);
  EXPECT_EQ(agreed.num_channels, 7);
  EXPECT_EQ(agreed.slot_bytes, uint64_t{8192});
  facts[1].num_channels = 200;
  Result result = attempt([&] { agree_on_cuda(facts); });
  EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kCuda));
  EXPECT_MSG(contains(result.message, "rank 1") && contains(result.message, "DCOMM_CUDA_CHANNELS"), result.message);
  facts[1].num_channels = 0;
  facts[0].slot_bytes = 100;
  result = attempt([&] { agree_on_cuda(facts); });
  EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kInvalidArgument));
  EXPECT_MSG(contains(result.message, "100 on rank 0"), result.message);
}

CHECK_CASE(cuda_agreement_counts_ranks_on_a_gpu) {
  const std::vector<CudaRankFacts> facts = {facts_of(0), facts_of(1), facts_of(0), facts_of(1)};
  EXPECT(is_first_on_its_gpu(facts, 0) && is_first_on_its_gpu(facts, 1));
  EXPECT(!is_first_on_its_gpu(facts, 2) && !is_first_on_its_gpu(facts, 3));
  EXPECT_EQ(count_on_gpu_of(facts, 3), 2);
}

CHECK_CASE(cuda_windows_from_environment) {
  setenv("DCOMM_CUDA_WINDOWS", "ipc", 1);
  EXPECT_EQ(allowed_window_kinds_from_environment(), int64_t{kDcommCudaWindowIpc});
  setenv("DCOMM_CUDA_WINDOWS", "fd", 1);
  const Result result = attempt([] { allowed_window_kinds_from_environment(); });
  EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kInvalidArgument));
  unsetenv("DCOMM_CUDA_WINDOWS");
  EXPECT_EQ(allowed_window_kinds_from_environment(), int64_t{kBoth});
}

/// Rank 0 of 3, whose peers' positions the check sets.
struct OneOfThree {
  std::vector<uint64_t> positions = {0, 0, 0};
  std::vector<CudaMessageCounts> messages = {{}, {}, {}};
  OpRecord announced;
  std::vector<OpRecord> records;
  std::string both;
  CudaProcessGroup group;

  explicit OneOfThree(int64_t least_timeout_ns = 0)
      : group(kTable, fake_group(), CudaEvents::create(kTable, 0), CudaProcessOptions{0, 0, least_timeout_ns},
              CudaProcessPeers{{0, 11, 22},
                               [this](const OpRecord& record) { announced = record; },
                               [this](const OpRecord& record) { records.push_back(record); },
                               [this](int rank) { return positions[static_cast<size_t>(rank)]; },
                               [this](int rank) { return messages[static_cast<size_t>(rank)]; },
                               [this](const DcommCudaFailure&) { return both; },
                               [](const DcommCudaFailure&) { return std::string("nobody has called recv"); }}) {
    fake->options.num_ranks = 1;  // in its process
  }
};

CHECK_CASE(cuda_process_group_launches_its_own_rank) {
  UseFake use;
  {
    OneOfThree one;
    for (uint64_t turn = 1; turn <= 3; ++turn) {
      one.group.run(good_call(0));
      EXPECT_EQ(one.records.back().seq, turn);
      EXPECT_EQ(one.records.back().count, uint64_t{1000});
    }
    EXPECT_EQ(use.state.num_launched.load(), 3);
    EXPECT(use.state.in[0] == good_call(0).call.in && use.state.streams[0] == good_call(0).stream);
    EXPECT_EQ(use.state.call.timeout_ns, uint64_t{21'000'000'000});
    CudaRankCall large = good_call(0);
    large.call.count = (size_t{5} << 32) + 1;
    one.group.run(large);
    EXPECT_EQ(use.state.call.count, (uint64_t{5} << 32) + 1);
    EXPECT_EQ(one.records.back().count, (uint64_t{5} << 32) + 1);
  }
  EXPECT_EQ(use.state.num_destroyed.load(), 1);
}

/// The same for the same call whenever it is made; another one for each argument that ranks must agree on.
CHECK_CASE(cuda_process_group_fingerprints) {
  UseFake use;
  OneOfThree one;
  const auto fingerprint_of = [&](const CudaRankCall& call) {
    one.group.run(call);
    return use.state.call.fingerprint;
  };
  const uint64_t usual = fingerprint_of(good_call(0));
  EXPECT(usual != 0);
  EXPECT_EQ(fingerprint_of(good_call(2)), usual);  // other addresses
  const std::function<void(CollectiveCall&)> changes[] = {
      [](CollectiveCall& call) { call.count = 999; },
      [](CollectiveCall& call) { call.dtype = DType::kBF16; },
      [](CollectiveCall& call) { call.wire = DType::kBF16; },
      [](CollectiveCall& call) { call.op = ReduceOp::kAvg; },
      [](CollectiveCall& call) { call.algo = Algo::kTwoShot; },
      [](CollectiveCall& call) { call.collective = Collective::kReduceScatter; },
      [](CollectiveCall& call) { call.collective = Collective::kBroadcast; },
      [](CollectiveCall& call) {
        call.collective = Collective::kBroadcast;
        call.root = 1;
      },
  };
  std::vector<uint64_t> seen = {usual};
  for (const auto& change : changes) {
    CudaRankCall call = good_call(0);
    change(call.call);
    const uint64_t fingerprint = fingerprint_of(call);
    for (const uint64_t other : seen) EXPECT(fingerprint != other);
    seen.push_back(fingerprint);
  }
}

CHECK_CASE(cuda_process_group_refuses) {
  UseFake use;
  OneOfThree one;
  CudaRankCall call = good_call(0);
  call.device = 1;
  EXPECT_EQ(static_cast<int>(attempt([&] { one.group.run(call); }).code),
            static_cast<int>(ErrorCode::kInvalidArgument));
  for (const int peer : {0, 3, -1}) {
    call = good_call(0);
    call.call.collective = Collective::kSend;
    call.call.root = peer;
    const Result result = attempt([&] { one.group.run(call); });
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kInvalidArgument));
    EXPECT_MSG(contains(result.message, "send with rank " + std::to_string(peer) + " on rank 0 of 3"), result.message);
  }
  use.state.launch_status = kDcommCudaInvalid;
  EXPECT_EQ(static_cast<int>(attempt([&] { one.group.run(good_call(0)); }).code),
            static_cast<int>(ErrorCode::kInvalidArgument));
  EXPECT(one.records.empty() && !one.group.is_broken());
  use.state.launch_status = kDcommCudaOk;
  one.group.run(good_call(0));
  EXPECT_EQ(one.records.back().seq, uint64_t{1});  // what was refused has no number
  use.state.launch_status = kDcommCudaFailed;
  EXPECT_EQ(static_cast<int>(attempt([&] { one.group.run(good_call(0)); }).code), static_cast<int>(ErrorCode::kCuda));
  EXPECT(one.group.is_broken());
}

CHECK_CASE(cuda_process_group_says_what_kernels_report) {
  UseFake use;
  {
    OneOfThree one;
    one.group.run(good_call(0));
    use.state.failure = {static_cast<int32_t>(ErrorCode::kTimeout), 2, 0, 2, 5};
    one.positions = {1, 1, 0};
    const Result result = attempt([&] { one.group.run(good_call(0)); });
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kTimeout));
    EXPECT_MSG(contains(result.message, "waiting for rank 2") && contains(result.message, "#1 on this rank") &&
                   contains(result.message, "#0 on rank 2"),
               result.message);
    EXPECT_EQ(static_cast<int>(attempt([&] { one.group.synchronize_check(kShortNs); }).code),
              static_cast<int>(ErrorCode::kTimeout));
  }
  OneOfThree one;
  use.state.failure = {static_cast<int32_t>(ErrorCode::kMismatch), 15, 1, 2, 5};
  const Result bare = attempt([&] { one.group.synchronize_check(kShortNs); });
  EXPECT_EQ(static_cast<int>(bare.code), static_cast<int>(ErrorCode::kMismatch));
  EXPECT_MSG(contains(bare.message, "ranks 1 and 2 made different calls"), bare.message);
  OneOfThree another;
  another.both = "rank 1 called this; rank 2 called that";
  EXPECT_EQ(attempt([&] { another.group.run(good_call(0)); }).message, another.both);
}

CHECK_CASE(cuda_process_group_peer_leaves) {
  UseFake use;
  OneOfThree one;
  one.positions = {0, 1, 1};
  one.group.run(good_call(0));
  one.group.note_exit(1, false);  // it has launched its part of all
  EXPECT_EQ(use.state.num_stopped.load(), 0);
  one.group.synchronize_check(kShortNs);
  one.positions[1] = 2;
  one.group.run(good_call(0));  // of this too, as is seen now
  const Result result = attempt([&] { one.group.run(good_call(0)); });
  EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kPeerLost));
  EXPECT_MSG(contains(result.message, "all_reduce(1000 x") &&
                 contains(result.message, "rank 1 (pid 11) closed its communicator"),
             result.message);
  EXPECT_EQ(use.state.num_launched.load(), 2);

  OneOfThree waits;
  waits.positions = {0, 1, 0};
  waits.group.run(good_call(0));
  waits.group.note_exit(2, false);  // and has not launched what this rank waits in
  EXPECT_EQ(use.state.num_stopped.load(), 1);
  EXPECT_EQ(static_cast<int>(attempt([&] { waits.group.run(good_call(0)); }).code),
            static_cast<int>(ErrorCode::kPeerLost));
}

CudaRankCall message_call(Collective kind, int peer, int tag = 0) {
  CudaRankCall call = good_call(0);
  call.call.collective = kind;
  call.call.algo = Algo::kFlat;
  call.call.wire = call.call.dtype;
  call.call.root = peer;
  call.call.tag = tag;
  return call;
}

CHECK_CASE(cuda_process_group_launches_its_side_of_messages) {
  UseFake use;
  OneOfThree one;
  one.group.run(message_call(Collective::kSend, 2, 7));
  EXPECT_EQ(use.state.call.root, 0);
  EXPECT_EQ(use.state.call.peer, 2);
  EXPECT_EQ(use.state.call.tag, 7);
  EXPECT_EQ(use.state.call.fingerprint, uint64_t{0});
  one.group.run(message_call(Collective::kRecv, 2));
  EXPECT_EQ(use.state.call.collective, static_cast<int32_t>(Collective::kSend));
  EXPECT_EQ(use.state.call.root, 2);
  EXPECT_EQ(use.state.call.peer, 0);
  // Each pair and direction counts for itself, and collectives do not see them.
  one.group.run(message_call(Collective::kSend, 2));
  one.group.run(message_call(Collective::kSend, 1));
  one.group.run(good_call(0));
  const uint64_t numbers[] = {1, 1, 2, 1, 1};
  const int roots[] = {2, 2, 2, 1, -1};
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(one.records[i].seq, numbers[i]);
    EXPECT_EQ(one.records[i].root, roots[i]);
  }
  EXPECT_EQ(one.records[0].tag, 7);
  EXPECT(one.records[1].collective == Collective::kRecv && one.announced.collective == Collective::kAllReduce);
  use.state.launch_status = kDcommCudaInvalid;  // what was refused has no number
  EXPECT_EQ(static_cast<int>(attempt([&] { one.group.run(message_call(Collective::kSend, 2)); }).code),
            static_cast<int>(ErrorCode::kInvalidArgument));
  use.state.launch_status = kDcommCudaOk;
  one.group.run(message_call(Collective::kSend, 2));
  EXPECT_EQ(one.records.back().seq, uint64_t{3});
}

CHECK_CASE(cuda_process_group_peer_leaves_with_messages) {
  UseFake use;
  for (const Collective kind : {Collective::kSend, Collective::kRecv}) {
    const bool sends = kind == Collective::kSend;
    const int stopped = use.state.num_stopped;
    {
      OneOfThree one;  // it has launched the other side
      one.group.run(message_call(kind, 1));
      one.messages[1] = sends ? CudaMessageCounts{0, 1} : CudaMessageCounts{1, 0};
      one.group.note_exit(1, false);
      EXPECT_EQ(use.state.num_stopped.load(), stopped);
      one.group.run(message_call(kind, 2));  // is none of its business
      const Result result = attempt([&] { one.group.run(message_call(kind, 1)); });
      EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kPeerLost));
      EXPECT_MSG(contains(result.message, "rank 1 on cuda:0: rank 1 (pid 11) closed its communicator"), result.message);
    }
    OneOfThree one;  // it has not
    one.group.run(message_call(kind, 1));
    one.messages[1] = sends ? CudaMessageCounts{1, 0} : CudaMessageCounts{0, 1};
    one.group.note_exit(1, false);
    EXPECT_EQ(use.state.num_stopped.load(), stopped + 1);
    EXPECT_EQ(static_cast<int>(attempt([&] { one.group.synchronize_check(kShortNs); }).code),
              static_cast<int>(ErrorCode::kOk));
    EXPECT_EQ(static_cast<int>(attempt([&] { one.group.run(good_call(0)); }).code),
              static_cast<int>(ErrorCode::kPeerLost));
  }
}

CHECK_CASE(cuda_process_group_says_why_messages_fail) {
  UseFake use;
  for (const Flow flow : {Flow::kMessage, Flow::kMessageCredit}) {
    OneOfThree one;
    use.state.failure = {static_cast<int32_t>(ErrorCode::kTimeout), static_cast<int32_t>(flow), 0, 2, 5};
    const Result late = attempt([&] { one.group.run(good_call(0)); });
    EXPECT_EQ(static_cast<int>(late.code), static_cast<int>(ErrorCode::kTimeout));
    EXPECT_MSG(contains(late.message, flow == Flow::kMessage ? "rank 2 to send" : "rank 2 to receive") &&
                   contains(late.message, "nobody has called recv"),
               late.message);
  }
  OneOfThree one;
  use.state.failure = {static_cast<int32_t>(ErrorCode::kMismatch), static_cast<int32_t>(Flow::kMessage), 1, 2, 0};
  const Result other = attempt([&] { one.group.run(good_call(0)); });
  EXPECT_EQ(static_cast<int>(other.code), static_cast<int>(ErrorCode::kMismatch));
  EXPECT_MSG(contains(other.message, "rank 1 has received on the GPU a message of rank 2 of another count"),
             other.message);
}

/// It has seen first what this rank's kernels find later, or, being through already, would find in the next operation.
CHECK_CASE(cuda_process_group_peer_leaves_because_calls_differ) {
  UseFake use;
  const auto code_of_next = [](OneOfThree& one) {
    return static_cast<int>(attempt([&] { one.group.run(good_call(0)); }).code);
  };
  {
    OneOfThree one;
    one.group.run(good_call(0));
    one.group.note_exit(2, false);
    EXPECT_EQ(use.state.num_stopped.load(), 1);
    use.state.failure = {static_cast<int32_t>(ErrorCode::kMismatch), 15, 1, 2, 1};
    EXPECT_EQ(code_of_next(one), static_cast<int>(ErrorCode::kMismatch));
    EXPECT_EQ(code_of_next(one), static_cast<int>(ErrorCode::kMismatch));
  }
  use.state.failure = {};
  {
    OneOfThree one;  // its kernels were stopped first: the notes tell
    one.group.run(good_call(0));
    one.group.note_exit(2, false);
    use.state.failure = {static_cast<int32_t>(ErrorCode::kAborted), 1, 0, 2, 1};
    one.both = "rank 0 called this; rank 2 called that";
    EXPECT_EQ(attempt([&] { one.group.run(good_call(0)); }).message, one.both);
  }
  use.state.failure = {};
  {
    OneOfThree one;  // seen in the next call itself
    one.positions = {0, 1, 1};
    one.group.run(good_call(0));
    one.group.note_exit(2, false);
    EXPECT_EQ(use.state.num_stopped.load(), 2);
    one.both = "rank 0 called this; rank 2 called that";
    EXPECT_EQ(code_of_next(one), static_cast<int>(ErrorCode::kMismatch));
  }
  OneOfThree one;  // a death is a death
  one.group.run(good_call(0));
  one.group.note_exit(2, true);
  one.both = "rank 0 called this; rank 2 called that";
  EXPECT_EQ(code_of_next(one), static_cast<int>(ErrorCode::kPeerLost));
}

CHECK_CASE(cuda_process_group_peer_dies) {
  UseFake use;
  {
    OneOfThree one;
    one.positions = {0, 1, 1};
    one.group.run(good_call(0));
    one.group.note_exit(2, true);
    EXPECT_EQ(use.state.num_stopped.load(), 1);
    one.group.synchronize_check(kShortNs);  // was done before
    const Result result = attempt([&] { one.group.run(good_call(0)); });
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kPeerLost));
    EXPECT_MSG(contains(result.message, "rank 2 (pid 22) died"), result.message);
  }
  {
    OneOfThree one;  // it died of what all have: that says more
    one.group.run(good_call(0));
    use.state.failure = {static_cast<int32_t>(ErrorCode::kMismatch), 15, 1, 2, 1};
    one.group.note_exit(2, true);
    EXPECT_EQ(static_cast<int>(attempt([&] { one.group.run(good_call(0)); }).code),
              static_cast<int>(ErrorCode::kMismatch));
  }
  {
    OneOfThree one;  // the GPU knows before the watcher that some rank has stopped
    use.state.failure = {};
    one.group.run(good_call(0));
    use.state.failure = {static_cast<int32_t>(ErrorCode::kAborted), 1, 1, 2, 1};
    std::thread watcher([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      one.group.note_exit(2, true);
    });
    const Result result = attempt([&] { one.group.run(good_call(0)); });
    watcher.join();
    EXPECT_EQ(static_cast<int>(result.code), static_cast<int>(ErrorCode::kPeerLost));
  }
}

CHECK_CASE(cuda_process_group_stop_and_abandon) {
  UseFake use;
  {
    OneOfThree one(30'000'000'000);
    one.group.run(good_call(0, kShortNs));
    EXPECT_EQ(use.state.call.timeout_ns, uint64_t{31'000'000'000});
    one.group.stop({ErrorCode::kAborted, "enough"});
    EXPECT_EQ(use.state.num_stopped.load(), 1);
    EXPECT_EQ(attempt([&] { one.group.run(good_call(0)); }).message, std::string("enough"));
    one.group.abandon();
    one.group.stop({ErrorCode::kAborted, "again"});
    EXPECT_EQ(use.state.num_stopped.load(), 1);
  }
  EXPECT_EQ(use.state.num_destroyed.load(), 0);
}

}  // namespace
}  // namespace dcomm::checks
