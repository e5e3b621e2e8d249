// The verifier must be able to fail: each check here breaks a record or a placement and expects the report.
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "verifier.h"

namespace dcomm::checks {
namespace {

Scenario scenario_of(Algo algo, PlacementKind kind, int world_size, int depth) {
  Scenario scenario;
  scenario.placement = {kind, world_size, depth};
  scenario.slot_count(SlotPool::kMain) = 32;  // 3 or 4 turns
  scenario.operations.assign(4, {Collective::kAllReduce, algo, 100 * static_cast<size_t>(world_size), 0});
  return scenario;
}

Scenario broadcasts(PlacementKind kind, int world_size) {
  Scenario scenario;
  scenario.placement = {kind, world_size, 2};
  scenario.slot_count(SlotPool::kFifo) = 32;
  scenario.operations.assign(3, {Collective::kBroadcast, Algo::kFlat, 100, 1});
  return scenario;
}

std::string verify_all_orders(const Scenario& scenario, const Record& programs) {
  for (const auto kind : {Order::kRoundRobin, Order::kAscending, Order::kStarve}) {
    const std::string problem = verify(scenario, programs, {kind, 1});
    if (!problem.empty()) return problem;
  }
  return "";
}

/// `spoil` changes rank 1's programs; the report must then hold `wanted`, and be empty without.
void expect_report(const Scenario& scenario, const char* wanted, const std::function<void(Program&)>& spoil) {
  Record programs = record(scenario);
  EXPECT_EQ(verify_all_orders(scenario, programs), std::string());
  for (auto& operation : programs[0]) spoil(operation[1]);
  const std::string problem = verify_all_orders(scenario, programs);
  EXPECT_MSG(problem.find(wanted) != std::string::npos, "wanted '" + std::string(wanted) + "', got '" + problem + "'");
}

void erase_events(Program& program, const std::function<bool(const Event&)>& which) {
  auto& events = program.events;
  events.erase(std::remove_if(events.begin(), events.end(), which), events.end());
}

auto kind_is(EventKind kind) {
  return [kind](const Event& event) { return event.kind == kind; };
}

}  // namespace

CHECK_CASE(verifier_reports_wrong_chunk) {
  const Scenario ring = scenario_of(Algo::kRing, PlacementKind::kBounce, 4, 2);
  expect_report(ring, "the slot holds", [](Program& program) {
    for (Event& event : program.events) {
      if (event.kind == EventKind::kAccumulate) event.range.offset += 16;
    }
  });
  // All ranks agree on the wrong chunk: every message fits, the order of summation does not.
  Record programs = record(ring);
  for (auto& operation : programs[0]) {
    for (Program& program : operation) {
      for (Event& event : program.events) {
        if (event.range.count == 0) continue;
        event.range.offset = (event.range.offset + 112) % 448;  // chunks of 112
        event.out_offset = event.range.offset;
      }
    }
  }
  EXPECT(verify_all_orders(ring, programs).find("not (((") != std::string::npos);
}

CHECK_CASE(verifier_reports_missing_terms) {
  const Scenario two_shot = scenario_of(Algo::kTwoShot, PlacementKind::kBounce, 5, 2);
  expect_report(two_shot, "not (((0+1)+(2+3))+4)", [](Program& program) {
    for (SlotRef& slot : program.operands) {
      if (slot.window == 0) slot.window = 2;  // rank 0's terms are taken to be rank 2's
    }
  });
  expect_report(two_shot, "not stored exactly once", [](Program& program) {
    const auto decode = std::find_if(program.events.begin(), program.events.end(), kind_is(EventKind::kDecode));
    program.events.insert(decode, *decode);
  });
  expect_report(two_shot, "not stored exactly once", [](Program& program) {
    program.events.erase(std::find_if(program.events.begin(), program.events.end(), kind_is(EventKind::kDecode)));
  });
}

// The right expression over the wrong elements, or at the wrong place: blocks differ in nothing else.
CHECK_CASE(verifier_reports_wrong_block) {
  Scenario scenario;
  scenario.placement = {PlacementKind::kBounce, 3, 2};
  const auto with = [&](Collective collective) {
    scenario.operations.assign(1, {collective, Algo::kFlat, 40, 1});
    return scenario;
  };
  const auto send_other = [](Program& program) {
    for (Event& event : program.events) {
      if (event.kind == EventKind::kEncode) event.range.offset += 16;
    }
  };
  expect_report(with(Collective::kAllToAll), "is 1 of element", send_other);
  expect_report(with(Collective::kScatter), "is 1 of element", send_other);
  expect_report(with(Collective::kReduceScatter), "to be combined with elements from", send_other);
  const auto store_elsewhere = [](Program& program) {
    for (Event& event : program.events) {
      if (event.kind == EventKind::kKeep) event.out_offset += 16;
    }
  };
  expect_report(with(Collective::kAllGather), "not stored exactly once", store_elsewhere);
  expect_report(with(Collective::kGather), "not stored exactly once", store_elsewhere);
}

// A parent that adds its children in the other order, or passes its own terms on instead of the result.
CHECK_CASE(verifier_reports_wrong_tree) {
  const Scenario tree = scenario_of(Algo::kTree, PlacementKind::kBounce, 7, 2);
  Record programs = record(tree);
  for (auto& operation : programs[0]) {
    for (Program& program : operation) {
      for (const Event& event : program.events) {
        if (event.kind == EventKind::kCombine && event.num_from == 2) {
          std::swap(program.operands[event.first_operand], program.operands[event.first_operand + 1]);
        }
      }
    }
  }
  EXPECT(verify_all_orders(tree, programs).find("not ((3+((1+0)+2))+((5+4)+6)) of 0") != std::string::npos);
  expect_report(tree, "is 1 of element", [](Program& program) {
    for (Event& event : program.events) {
      if (event.kind == EventKind::kCopy) event.kind = EventKind::kEncode;
    }
  });
}

CHECK_CASE(verifier_reports_too_few_slots) {
  for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
    const Scenario two_shot = scenario_of(Algo::kTwoShot, kind, 3, 1);  // but one turn of look-ahead
    EXPECT(verify_all_orders(two_shot, record(two_shot)).find("race") != std::string::npos);
  }
  for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const Algo algo : {Algo::kTree, Algo::kOneShot}) {  // these look one turn ahead as well
      const Scenario scenario = scenario_of(algo, kind, 4, 1);
      EXPECT(verify_all_orders(scenario, record(scenario)).find("race") != std::string::npos);
    }
  }
  const Scenario ring = scenario_of(Algo::kRing, PlacementKind::kPush, 3, 1);  // everyone waits for a credit
  EXPECT(verify_all_orders(ring, record(ring)).find("deadlock") != std::string::npos);
}

CHECK_CASE(verifier_reports_missing_credits) {
  const Scenario ring = scenario_of(Algo::kRing, PlacementKind::kPush, 5, 2);
  expect_report(ring, "race: write and rank 2's read",
                [](Program& program) { erase_events(program, kind_is(EventKind::kAcquire)); });
  expect_report(ring, "deadlock", [](Program& program) { erase_events(program, kind_is(EventKind::kRelease)); });
  for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
    expect_report(broadcasts(kind, 3), "race: write and",
                  [](Program& program) { erase_events(program, kind_is(EventKind::kAcquire)); });
    Scenario pairs = broadcasts(kind, 3);
    for (const Collective collective :
         {Collective::kReduce, Collective::kGather, Collective::kScatter, Collective::kAllToAll}) {
      for (Operation& operation : pairs.operations) {
        operation.collective = collective;
        operation.root = collective == Collective::kScatter ? 1 : 0;  // rank 1 sends
        // Where rank 2 sends as much, its data tells what its credits tell.
        if (collective == Collective::kAllToAll) operation.lengths = {0, 0, 0, 0, 0, 100, 0, 0, 0};
      }
      expect_report(pairs, "race: write and",
                    [](Program& program) { erase_events(program, kind_is(EventKind::kAcquire)); });
    }
  }
}

CHECK_CASE(verifier_reports_lost_messages) {
  const Scenario ring = scenario_of(Algo::kRing, PlacementKind::kBounce, 3, 2);
  expect_report(ring, "published out of turn", [](Program& program) {
    program.events.erase(std::find_if(program.events.begin(), program.events.end(), kind_is(EventKind::kPublish)));
  });
  Scenario barriers = ring;
  barriers.operations.assign(1, {});
  expect_report(barriers, "deadlock", [](Program& program) { erase_events(program, kind_is(EventKind::kPublish)); });
  expect_report(barriers, "nobody waits for", [](Program& program) {
    program.events.push_back(program.events[0]);
    program.events.back().seq = 1;
  });
  const Scenario two_shot = scenario_of(Algo::kTwoShot, PlacementKind::kPush, 3, 2);
  expect_report(two_shot, "race", [](Program& program) {  // reads before it waits
    const auto reduce =
        std::find_if(program.events.begin(), program.events.end(), kind_is(EventKind::kReduceCanonical));
    const auto arrive = std::find_if(program.events.begin(), program.events.end(), kind_is(EventKind::kArrive));
    std::rotate(arrive, reduce, reduce + 1);
  });
}

// An array is used only after its owner has lent it and before it takes it back, by every possible timing.
CHECK_CASE(verifier_reports_arrays_not_lent) {
  const Scenario direct = scenario_of(Algo::kDirect, PlacementKind::kBounce, 3, 2);
  const auto without_wait = [](uint64_t parity) {
    return [parity](Program& program) {
      erase_events(program, [parity](const Event& event) {
        return event.kind == EventKind::kArrive && event.seq % 2 == parity;
      });
    };
  };
  const std::vector<std::pair<uint64_t, const char*>> reports{{0, "which it has not lent"}, {1, "ends an operation"}};
  for (const auto& [parity, report] : reports) {
    Record programs = record(direct);
    without_wait(parity)(programs[0][0][1]);
    // The waits of later operations are out of turn then: one operation will do.
    Scenario once = direct;
    once.operations.resize(1);
    for (auto& channel : programs) channel.resize(1);
    EXPECT(verify_all_orders(once, programs).find(report) != std::string::npos);
  }
}

// The same where each rank reads the others' inputs, and where it would store over them.
CHECK_CASE(verifier_reports_inputs_not_lent) {
  Scenario scenario;
  scenario.placement = {PlacementKind::kBounce, 3, 2};
  for (const Collective collective : {Collective::kReduceScatter, Collective::kAllGather}) {
    scenario.operations = {{collective, Algo::kDirect, 40}};
    const std::vector<std::pair<uint64_t, const char*>> reports{{0, "which it has not lent"}, {1, "ends an operation"}};
    for (const auto& [parity, report] : reports) {
      expect_report(scenario, report, [parity = parity](Program& program) {
        erase_events(program, [parity](const Event& event) {
          return event.kind == EventKind::kArrive && event.seq % 2 == parity;
        });
      });
    }
  }
  scenario.operations = {{Collective::kReduceScatter, Algo::kDirect, 40}};
  Record programs = record(scenario);
  EXPECT_EQ(detail::check_aliases(scenario.operations[0], programs, 0), std::string());
  for (Event& event : programs[0][0][0].events) event.range.offset += 40;  // of rank 1's block, which that stores over
  EXPECT(detail::check_aliases(scenario.operations[0], programs, 0).find("stores over what rank") != std::string::npos);
}

CHECK_CASE(verifier_reports_single_slot) {
  for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
    const Scenario scenario = scenario_of(Algo::kTwoShot, kind, 3, 2);
    Record programs = record(scenario);
    const auto collapse = [](SlotRef& slot) { slot.index -= slot.index % 2; };
    for (auto& operation : programs[0]) {
      for (Program& program : operation) {
        for (Event& event : program.events) {
          collapse(event.to);
          collapse(event.from);
        }
        for (SlotRef& slot : program.operands) collapse(slot);
      }
    }
    EXPECT(verify_all_orders(scenario, programs).find("race") != std::string::npos);
  }
}

CHECK_CASE(verifier_reports_channels_that_meet) {
  Record programs(2, {{Program{}}});
  Event event;
  event.kind = EventKind::kDecode;
  event.range = {16, 16};
  event.out_offset = 16;
  programs[0][0][0].events.push_back(event);
  event.kind = EventKind::kEncode;
  event.range = {32, 16};
  programs[1][0][0].events.push_back(event);
  const Operation operation{Collective::kAllReduce, Algo::kRing, 100};
  EXPECT_EQ(detail::check_aliases(operation, programs, 0), std::string());
  programs[1][0][0].events[0].range.offset = 24;
  EXPECT(!detail::check_aliases(operation, programs, 0).empty());
}

CHECK_CASE(verifier_reports_input_read_after_result) {
  Program program;
  Event event;
  event.range = {16, 16};
  event.out_offset = 16;
  event.kind = EventKind::kDecode;
  program.events.push_back(event);
  event.kind = EventKind::kEncode;
  event.range = {32, 16};
  program.events.push_back(event);
  EXPECT_EQ(detail::check_in_place(program), std::string());
  EXPECT(!detail::check_in_place(program, {16, 0}).empty());  // the result begins at element 16 of the input
  EXPECT_EQ(detail::check_in_place(program, {0, 16}), std::string());
  program.events.back().range = {24, 16};
  EXPECT(!detail::check_in_place(program).empty());
}

}  // namespace dcomm::checks
