// Which algorithm "auto" means: the measured table, what overrides it, and what a deterministic group refuses.
#include "check.h"
#include "comm/settings.h"

namespace dcomm::checks {
namespace {

constexpr uint64_t kLargest = UINT64_MAX;

}  // namespace

CHECK_CASE(selector_covers_every_group_and_size) {
  for (const bool oversubscribed : {false, true}) {
    for (int n = 2; n <= 64; ++n) {
      const AlgoSteps found = steps_for(n, oversubscribed);
      EXPECT_EQ(found.steps[kMaxAlgoSteps - 1].max_bytes, kLargest);
      for (int i = 1; i < kMaxAlgoSteps; ++i) EXPECT(found.steps[i - 1].max_bytes <= found.steps[i].max_bytes);
      EXPECT(found.choose(0) == Algo::kOneShot);
      EXPECT(found.choose(kLargest) == Algo::kTwoShot);
    }
  }
}

// one_shot sends n - 1 times the bytes: where every rank has a CPU, its bound shrinks with the group.
CHECK_CASE(selector_scales_what_two_cpus_could_not_measure) {
  const uint64_t pair = steps_for(2, false).steps[0].max_bytes;
  for (int n = 3; n <= 64; ++n) {
    const AlgoSteps found = steps_for(n, false);
    const uint64_t bound = pair / static_cast<uint64_t>(n - 1);
    EXPECT(found.choose(bound) == Algo::kOneShot);
    EXPECT(found.choose(bound + 1) == Algo::kTwoShot);
  }
}

CHECK_CASE(selector_goes_by_request_then_override_then_table) {
  Settings settings;
  settings.algo_steps.steps[0].max_bytes = 100;
  settings.algo_steps.steps[0].algo = Algo::kRing;
  EXPECT(select_algo(settings, Algo::kAuto, 100) == Algo::kRing);
  EXPECT(select_algo(settings, Algo::kAuto, 101) == Algo::kTwoShot);
  settings.deterministic = true;
  EXPECT(select_algo(settings, Algo::kAuto, 100) == Algo::kTwoShot);  // the measured one is not canonical
  settings.deterministic = false;
  settings.forced_algo = Algo::kTree;
  EXPECT(select_algo(settings, Algo::kAuto, 100) == Algo::kTree);
  EXPECT(select_algo(settings, Algo::kOneShot, 100) == Algo::kOneShot);
}

// Arrays that all ranks reach: direct in place of two_shot and of what is not measured for them, not of one_shot.
CHECK_CASE(selector_takes_direct_for_shared_arrays_only) {
  Settings settings;
  settings.algo_steps.steps[0] = {100, Algo::kOneShot};
  settings.algo_steps.steps[1] = {200, Algo::kRing};
  for (const bool deterministic : {false, true}) {
    settings.deterministic = deterministic;
    EXPECT(select_algo(settings, Algo::kAuto, 100, true) == Algo::kOneShot);
    EXPECT(select_algo(settings, Algo::kAuto, 101, true) == Algo::kDirect);
    EXPECT(select_algo(settings, Algo::kAuto, 201, true) == Algo::kDirect);
    EXPECT(select_algo(settings, Algo::kAuto, 201, false) == Algo::kTwoShot);
    EXPECT(select_algo(settings, Algo::kTwoShot, 201, true) == Algo::kTwoShot);
    EXPECT(select_algo(settings, Algo::kDirect, 1, true) == Algo::kDirect);
  }
  settings.forced_algo = Algo::kDirect;
  EXPECT(select_algo(settings, Algo::kAuto, 1, true) == Algo::kDirect);
  EXPECT(select_algo(settings, Algo::kAuto, 1, false) == Algo::kOneShot);
  settings.forced_algo = Algo::kTwoShot;
  EXPECT(select_algo(settings, Algo::kAuto, 201, true) == Algo::kTwoShot);
}

}  // namespace dcomm::checks
