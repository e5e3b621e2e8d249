// send, recv and split: the recorded schedule replayed in random orders, lanes on the host executor, and communicators
// of threads that exchange random messages (what ThreadSanitizer runs).
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "algo/send_recv.h"
#include "comm/communicator.h"
#include "exec/record_exec.h"
#include "random.h"
#include "rank_threads.h"
#include "sanitized.h"

namespace dcomm::checks {
namespace {

void expect_success(const Work& work) {
  const std::optional<Error> error = work.error();
  EXPECT_MSG(!error, error ? error->what() : "");
}

// ---- The schedule ----

struct Message {
  int src = 0;
  int dst = 0;
  ChunkPlan plan;
};

/// What a slot holds, or what is read from it.
struct Piece {
  size_t message = 0;
  uint64_t index = 0;  // 0: the envelope
  bool operator==(const Piece&) const = default;
};

struct Step {
  Event event;
  size_t message = 0;
  uint64_t index = 0;  // of the piece that a data event moves
};

std::vector<Message> random_messages(Random& random, int world_size) {
  std::vector<Message> messages(2 + random.below(static_cast<uint64_t>(22 + 4 * world_size)));
  for (Message& message : messages) {
    message.src = static_cast<int>(random.below(static_cast<uint64_t>(world_size)));
    message.dst = static_cast<int>(
        (static_cast<uint64_t>(message.src) + 1 + random.below(static_cast<uint64_t>(world_size) - 1)) %
        static_cast<uint64_t>(world_size));
    const size_t count = random.coin() ? random.below(40) : random.below(200);
    message.plan = ChunkPlan::make(count, 1, 16, 1);
  }
  return messages;
}

/// By rank: its part in all messages, one after the other.
std::vector<std::vector<Step>> record(const Placement& placement, const std::vector<Message>& messages) {
  std::vector<std::vector<Step>> steps;
  for (int rank = 0; rank < placement.world_size; ++rank) {
    RecordExec exec(placement, rank, 0);
    std::vector<Step>& mine = steps.emplace_back();
    for (size_t i = 0; i < messages.size(); ++i) {
      const Message& message = messages[i];
      Envelope envelope;
      envelope.count = message.plan.count;
      if (message.src == rank) {
        EXPECT(send(exec, RecordKernels{}, message.plan, message.dst, envelope));
      } else if (message.dst == rank) {
        EXPECT(recv_envelope(exec, RecordKernels{}, message.src, envelope));
        EXPECT(recv_data(exec, RecordKernels{}, message.plan, message.src));
      }
      uint64_t index = 0;
      for (const Event& event : exec.take().events) {
        const bool moves = event.kind == EventKind::kEncode || event.kind == EventKind::kDecode ||
                           event.kind == EventKind::kPutEnvelope || event.kind == EventKind::kGetEnvelope;
        mine.push_back({event, i, moves ? index++ : 0});
      }
    }
  }
  return steps;
}

/// Runs the ranks' steps in a random order that waits allow; what went wrong, or an empty string.
class Replay {
 public:
  Replay(const Placement& placement, const std::vector<std::vector<Step>>& steps, bool ignore_credits)
      : placement_(placement), steps_(steps), ignore_credits_(ignore_credits) {}

  std::string run(Random& random) {
    std::vector<size_t> next(steps_.size());
    size_t left = 0;
    for (const auto& of_rank : steps_) left += of_rank.size();
    while (left != 0 && problem_.empty()) {
      std::vector<size_t> ready;
      for (size_t rank = 0; rank < steps_.size(); ++rank) {
        if (next[rank] < steps_[rank].size() && may_run(static_cast<int>(rank), steps_[rank][next[rank]].event)) {
          ready.push_back(rank);
        }
      }
      if (ready.empty()) return "all ranks wait";
      const size_t rank = ready[random.below(ready.size())];
      run_step(static_cast<int>(rank), steps_[rank][next[rank]++]);
      --left;
    }
    return problem_;
  }

 private:
  struct Slot {
    Piece piece;
    bool is_unread = false;
  };
  using EdgeName = std::tuple<int, int, Flow>;  // to, from, flow
  using SlotName = std::tuple<int, SlotPool, int>;
  static SlotName name(const SlotRef& slot) { return {slot.window, slot.pool, slot.index}; }

  bool may_run(int rank, const Event& event) {
    const auto depth = static_cast<uint64_t>(placement_.depth);
    if (event.kind == EventKind::kArrive) return published_[{rank, event.peer, event.flow}] > event.seq;
    if (event.kind != EventKind::kAcquire || event.seq < depth || ignore_credits_) return true;
    return published_[{rank, event.peer, credit_flow(event.flow)}] > event.seq - depth;
  }

  void publish(int rank, const Event& event, Flow flow) {
    uint64_t& published = published_[{event.peer, rank, flow}];
    if (published != event.seq) problem_ = "published out of turn";
    ++published;
  }

  void run_step(int rank, const Step& step) {
    const Piece piece{step.message, step.index};
    switch (step.event.kind) {
      case EventKind::kPutEnvelope:
      case EventKind::kEncode: {
        Slot& slot = slots_[name(step.event.to)];
        if (slot.is_unread) problem_ = "a slot is written before it was read";
        slot = {piece, true};
        return;
      }
      case EventKind::kGetEnvelope:
      case EventKind::kDecode: {
        Slot& slot = slots_[name(step.event.from)];
        if (!slot.is_unread || !(slot.piece == piece)) problem_ = "a slot does not hold what its reader expects";
        slot.is_unread = false;
        return;
      }
      case EventKind::kPublish:
        return publish(rank, step.event, step.event.flow);
      case EventKind::kRelease:
        return publish(rank, step.event, credit_flow(step.event.flow));
      default:
        return;
    }
  }

  const Placement placement_;
  const std::vector<std::vector<Step>>& steps_;
  const bool ignore_credits_;
  std::map<EdgeName, uint64_t> published_;
  std::map<SlotName, Slot> slots_;
  std::string problem_;
};

// ---- Communicators ----

CollectiveCall message_call(Collective kind, void* data, size_t count, int peer, int tag, DType dtype = DType::kU8) {
  CollectiveCall call;
  call.collective = kind;
  call.in = data;
  call.out = data;
  call.count = count;
  call.dtype = call.wire = dtype;
  call.root = peer;
  call.tag = tag;
  return call;
}

std::vector<Outcome> run_communicators(const std::vector<std::shared_ptr<Communicator>>& comms,
                                       const std::function<void(Communicator&)>& body) {
  std::vector<std::function<void()>> tasks;
  for (const auto& comm : comms) tasks.emplace_back([&body, &comm] { body(*comm); });
  return run_threads(tasks);
}

struct Exchange {
  int src, dst, tag;
  std::vector<uint8_t> data;
};

std::vector<Exchange> random_exchanges(Random& random, int world_size, size_t num) {
  std::vector<Exchange> all;
  for (size_t i = 0; i < num; ++i) {
    const int src = static_cast<int>(random.below(static_cast<uint64_t>(world_size)));
    const int step = 1 + static_cast<int>(random.below(static_cast<uint64_t>(world_size) - 1));
    Exchange exchange{src, (src + step) % world_size, static_cast<int>(random.below(3)), {}};
    exchange.data.resize(random.below(10) == 0 ? random.below(300'000) : random.below(200));
    for (uint8_t& byte : exchange.data) byte = static_cast<uint8_t>(random.next());
    all.push_back(std::move(exchange));
  }
  return all;
}

/// Queues everything, receives in another order than is sent, and compares.
void exchange_all(Communicator& comm, const std::vector<Exchange>& all, uint64_t seed) {
  Random random(seed + static_cast<uint64_t>(comm.rank()));
  constexpr int64_t kTimeoutNs = 30'000'000'000;
  std::vector<std::shared_ptr<Work>> works;
  std::map<std::pair<int, int>, std::vector<size_t>> to_receive;  // by sender and tag, in order
  std::vector<std::vector<uint8_t>> received(all.size());
  std::vector<size_t> to_send;
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].src == comm.rank()) to_send.push_back(i);
    if (all[i].dst == comm.rank()) to_receive[{all[i].src, all[i].tag}].push_back(i);
  }
  size_t next_send = 0;
  std::map<std::pair<int, int>, size_t> next_recv;
  while (next_send < to_send.size() || !to_receive.empty()) {
    const bool sends = next_send < to_send.size() && (to_receive.empty() || random.coin());
    if (sends) {
      const Exchange& one = all[to_send[next_send++]];
      works.push_back(comm.enqueue(
          message_call(Collective::kSend, const_cast<uint8_t*>(one.data.data()), one.data.size(), one.dst, one.tag),
          kTimeoutNs));
      continue;
    }
    const auto entry = std::next(to_receive.begin(), static_cast<std::ptrdiff_t>(random.below(to_receive.size())));
    const size_t i = entry->second[next_recv[entry->first]++];
    received[i].resize(all[i].data.size());
    const CollectiveCall call =
        message_call(Collective::kRecv, received[i].data(), received[i].size(), all[i].src, all[i].tag);
    if (next_recv[entry->first] == entry->second.size()) to_receive.erase(entry);
    works.push_back(comm.enqueue(call, kTimeoutNs));
  }
  for (const auto& work : works) {
    EXPECT(work->wait_for(std::chrono::seconds(60)));
    expect_success(*work);
  }
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].dst == comm.rank()) EXPECT_MSG(received[i] == all[i].data, "message " + std::to_string(i));
  }
}

}  // namespace

CHECK_CASE(p2p_schedule_in_random_orders) {
  Random random(11);
  for (int world_size = 2; world_size <= 64; ++world_size) {
    for (const PlacementKind kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
      const Placement placement{kind, world_size, 2};
      for (int round = 0; round < (world_size <= 8 ? 20 : kSanitized ? 1 : 3); ++round) {
        const auto steps = record(placement, random_messages(random, world_size));
        const std::string problem = Replay(placement, steps, false).run(random);
        EXPECT_MSG(problem.empty(), problem + " with " + std::to_string(world_size) + " ranks");
      }
    }
  }
}

CHECK_CASE(p2p_schedule_needs_its_credits) {
  Random random(12);
  int num_found = 0;
  for (int round = 0; round < 20; ++round) {
    const Placement placement{PlacementKind::kBounce, 3, 2};
    const auto steps = record(placement, random_messages(random, 3));
    num_found += Replay(placement, steps, true).run(random).empty() ? 0 : 1;
  }
  EXPECT(num_found > 10);
}

CHECK_CASE(p2p_lanes_and_channels) {
  constexpr int kNumChannels = 2, kNumLanes = 3;
  for (const PlacementKind kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
    const WindowLayout layout{{kind, 2, 2}, kNumChannels, {64, 64, 64, 64, 256, 0}, kPacketGrain};
    const auto windows = make_heap_windows(2, layout.window_bytes());
    HostContext contexts[2] = {{0, windows, layout}, {1, windows, layout}};
    for (const size_t count : {size_t{0}, size_t{1}, size_t{63}, size_t{5000}}) {
      std::vector<float> in(count), out(count, -1.0f);
      for (size_t i = 0; i < count; ++i) in[i] = static_cast<float>(i);
      const ChunkPlan plan = ChunkPlan::make(count, 1, 64, kNumChannels);
      HostOp ops[2];
      for (HostOp& op : ops) {
        op.hash = 77;
        op.policy = {0, 100'000, false};
        op.timeout_ns = 20'000'000'000;
      }
      ops[0].only_peer = 1;
      ops[1].only_peer = 0;
      std::vector<std::unique_ptr<LaneBarrier>> barriers;
      for (int i = 0; i < 2 * kNumChannels; ++i) barriers.push_back(std::make_unique<LaneBarrier>(kNumLanes));
      std::atomic<int> num_done{0};
      std::vector<std::thread> threads;
      for (int rank = 0; rank < 2; ++rank) {
        for (int channel = 0; channel < kNumChannels; ++channel) {
          for (int lane = 0; lane < kNumLanes; ++lane) {
            threads.emplace_back([&, rank, channel, lane] {
              LaneScratch scratch(contexts[rank]);
              HostExec exec(contexts[rank], ops[rank], *barriers[static_cast<size_t>(rank * kNumChannels + channel)],
                            channel, lane, scratch);
              HostKernels kernels;
              kernels.functions = kernel_table_scalar()->find(DType::kF32, DType::kF32, ReduceOp::kSum);
              kernels.user_bytes = kernels.wire_bytes = sizeof(float);
              kernels.in = reinterpret_cast<const std::byte*>(in.data());
              kernels.out = reinterpret_cast<std::byte*>(out.data());
              Envelope envelope;
              if (rank == 0) {
                envelope = {count, 5, DType::kF32};
                if (send(exec, kernels, plan, 1, envelope)) ++num_done;
              } else if (recv_envelope(exec, kernels, 0, envelope) && recv_data(exec, kernels, plan, 0)) {
                if (envelope.count == count && envelope.tag == 5 && envelope.dtype == DType::kF32) ++num_done;
              }
            });
          }
        }
      }
      for (std::thread& thread : threads) thread.join();
      EXPECT_EQ(num_done.load(), 2 * kNumChannels * kNumLanes);
      EXPECT(in == out);
    }
  }
}

CHECK_CASE(p2p_random_messages_queued_in_random_orders) {
  const uint64_t num_rounds = kSanitized ? 3 : 8;
  for (uint64_t seed = 0; seed < num_rounds; ++seed) {
    Random random(seed);
    const int world_size = 2 + static_cast<int>(seed % 3);
    const std::vector<Exchange> all = random_exchanges(random, world_size, 120);
    const auto comms = Communicator::of_threads(world_size);
    expect_no_errors(run_communicators(comms, [&](Communicator& comm) { exchange_all(comm, all, seed); }));
  }
}

CHECK_CASE(p2p_complex_and_other_dtypes) {
  const auto comms = Communicator::of_threads(2);
  expect_no_errors(run_communicators(comms, [](Communicator& comm) {
    for (int number = 0; number < kNumDTypes; ++number) {
      const auto dtype = static_cast<DType>(number);
      std::vector<uint8_t> data(1000 * dtype_bytes(dtype)), mine(data.size());
      for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(i * 37);
      if (comm.rank() == 0) {
        comm.run(message_call(Collective::kSend, data.data(), 1000, 1, number, dtype), 0, nullptr);
      } else {
        comm.run(message_call(Collective::kRecv, mine.data(), 1000, 0, number, dtype), 0, nullptr);
        EXPECT(mine == data);
      }
    }
  }));
}

CHECK_CASE(p2p_message_too_large_to_stash) {
  if (kSanitized) return;  // their allocators end the process instead
  const auto comms = Communicator::of_threads(2);
  std::vector<uint8_t> slots(1 << 20);  // more is never read: the receiver takes none of it
  const auto work =
      comms[0]->enqueue(message_call(Collective::kSend, slots.data(), size_t{1} << 60, 1, 8), 1'000'000'000);
  const auto outcomes = run_threads(
      {[&] { comms[1]->run(message_call(Collective::kRecv, slots.data(), 10, 0, 9), 20'000'000'000, nullptr); }});
  EXPECT_ERROR(outcomes[0], ErrorCode::kInternal,
               "1152921504606846976 elements of uint8 with tag 8; receive it before");
  EXPECT(work->wait_for(std::chrono::seconds(20)));
  EXPECT(work->error() && work->error()->code() == ErrorCode::kTimeout);
}

CHECK_CASE(p2p_posted_messages_wait_side_by_side) {
  // The receive posted last is served first; messages of any rank go to the receive posted first.
  const auto comms = Communicator::of_threads(3);
  for (int round = 0; round < (kSanitized ? 20 : 200); ++round) {
    uint8_t got[4] = {}, sent[4] = {1, 2, 3, 4};
    constexpr int64_t kTimeoutNs = 30'000'000'000;
    const auto recv = [&](int i, int peer, int tag) {
      return comms[0]->enqueue(message_call(Collective::kRecv, &got[i], 1, peer, tag), kTimeoutNs);
    };
    const auto send = [&](int from, int i, int tag) {
      EXPECT_EQ(comms[static_cast<size_t>(from)]->run(message_call(Collective::kSend, &sent[i], 1, 0, tag), kTimeoutNs,
                                                      nullptr),
                -1);
    };
    const auto expect_done = [](const std::shared_ptr<Work>& work, int source) {
      EXPECT(work->wait_for(std::chrono::seconds(30)));
      EXPECT_EQ(work->source(), source);
    };
    const auto first = recv(0, 1, 1), any = recv(1, kAnySource, 1), second = recv(2, 2, 1), third = recv(3, 1, 2);
    send(1, 3, 2);
    expect_done(third, 1);
    send(2, 1, 1);
    expect_done(any, 2);  // posted before the one that names rank 2
    send(2, 2, 1);
    expect_done(second, 2);
    EXPECT(!first->done());
    send(1, 0, 1);
    expect_done(first, 1);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(static_cast<int>(got[i]), i + 1);
  }
}

CHECK_CASE(p2p_any_source_among_many) {
  // Every rank sends to all others and receives from any: each message once, those of one rank in order.
  constexpr int kWorldSize = 4;
  const int num_rounds = kSanitized ? 40 : 300;
  const auto comms = Communicator::of_threads(kWorldSize);
  expect_no_errors(run_communicators(comms, [&](Communicator& comm) {
    std::vector<std::shared_ptr<Work>> works;
    std::vector<int64_t> out(static_cast<size_t>(num_rounds)), in(static_cast<size_t>(num_rounds) * (kWorldSize - 1));
    for (int round = 0; round < num_rounds; ++round) {
      out[static_cast<size_t>(round)] = 1000 * comm.rank() + round;
      for (int step = 1; step < kWorldSize; ++step) {
        works.push_back(comm.enqueue(message_call(Collective::kSend, &out[static_cast<size_t>(round)], 1,
                                                  (comm.rank() + step) % kWorldSize, 0, DType::kI64),
                                     30'000'000'000));
      }
    }
    std::vector<int> sources;
    std::vector<std::shared_ptr<Work>> receives;
    for (size_t i = 0; i < in.size(); ++i) {
      const CollectiveCall call = message_call(Collective::kRecv, &in[i], 1, kAnySource, 0, DType::kI64);
      if (i % 3 == 0) {
        sources.push_back(comm.run(call, 30'000'000'000, nullptr));
      } else {
        const auto work = comm.enqueue(call, 30'000'000'000);
        EXPECT(work->wait_for(std::chrono::seconds(60)));
        sources.push_back(work->source());
      }
    }
    for (const auto& work : works) {
      EXPECT(work->wait_for(std::chrono::seconds(60)));
      expect_success(*work);
    }
    std::map<int, int> next;
    for (size_t i = 0; i < in.size(); ++i) EXPECT_EQ(in[i], 1000 * sources[i] + next[sources[i]]++);
  }));
}

CHECK_CASE(p2p_deadlines_are_each_ones_own) {
  const auto comms = Communicator::of_threads(3);
  uint8_t data[3] = {};
  const auto slow = comms[0]->enqueue(message_call(Collective::kRecv, &data[0], 1, 1, 0), 600'000'000'000);
  const auto soon = comms[0]->enqueue(message_call(Collective::kRecv, &data[1], 1, 2, 0), 100'000'000);
  EXPECT(soon->wait_for(std::chrono::seconds(30)));
  EXPECT(soon->error() && soon->error()->code() == ErrorCode::kTimeout);
  EXPECT(slow->wait_for(std::chrono::seconds(30)));
  EXPECT(slow->error() && slow->error()->code() == ErrorCode::kTimeout);
}

CHECK_CASE(split_threads_many_times) {
  const auto comms = Communicator::of_threads(4);
  expect_no_errors(run_communicators(comms, [](Communicator& comm) {
    for (int round = 0; round < (kSanitized ? 5 : 20); ++round) {
      const bool has_color = round % 4 != 3 || comm.rank() != 2;
      const auto child = comm.split(has_color ? std::optional<int64_t>(comm.rank() % 2) : std::nullopt, -comm.rank(),
                                    20'000'000'000, nullptr);
      EXPECT((child != nullptr) == has_color);
      if (child == nullptr) continue;
      std::vector<int64_t> own{comm.rank()};
      CollectiveCall call;
      call.collective = Collective::kAllReduce;
      call.algo = Algo::kAuto;
      call.dtype = call.wire = DType::kI64;
      call.in = call.out = own.data();
      call.count = 1;
      child->run(call, 20'000'000'000, nullptr);
      EXPECT_EQ(own[0], comm.rank() % 2 == 1 ? 4 : round % 4 != 3 ? 2 : 0);
      if (round % 2 == 0) child->close();
    }
  }));
}

/// Two ranks of eight threads each, and eight communicators: whichever thread gets in does a group's next operation,
/// and one that is refused tries another group. All operations of a group are alike.
CHECK_CASE(split_eight_threads_eight_groups) {
  constexpr size_t kThreads = 8;
  constexpr size_t kGroups = 8;
  constexpr int kEach = kSanitized ? 40 : 200;
  std::vector<std::vector<std::shared_ptr<Communicator>>> groups;
  for (size_t group = 0; group < kGroups; ++group) groups.push_back(Communicator::of_threads(2));
  std::mutex mutex;
  std::vector<std::vector<int>> left(2, std::vector<int>(kGroups, kEach));
  int num_right = 0;
  std::vector<std::function<void()>> tasks;
  for (size_t number = 0; number < 2 * kThreads; ++number) {
    tasks.emplace_back([&, number] {
      const size_t rank = number % 2;
      for (size_t turn = number;; ++turn) {
        size_t group = 0;
        {
          const std::lock_guard lock(mutex);
          size_t tried = 0;
          while (tried < kGroups && left[rank][(turn + tried) % kGroups] == 0) ++tried;
          if (tried == kGroups) return;
          group = (turn + tried) % kGroups;
          --left[rank][group];
        }
        std::vector<int64_t> values(3000, static_cast<int64_t>(rank + 10 * group));
        CollectiveCall call;
        call.collective = Collective::kAllReduce;
        call.algo = Algo::kAuto;
        call.dtype = call.wire = DType::kI64;
        call.in = call.out = values.data();
        call.count = values.size();
        try {
          groups[group][rank]->run(call, 60'000'000'000, nullptr);
        } catch (const Error& error) {
          if (error.code() != ErrorCode::kConcurrentUse) throw;
          const std::lock_guard lock(mutex);
          ++left[rank][group];
          continue;
        }
        const int64_t expected = static_cast<int64_t>(20 * group + 1);
        for (const int64_t value : values) EXPECT_EQ(value, expected);
        const std::lock_guard lock(mutex);
        ++num_right;
      }
    });
  }
  expect_no_errors(run_threads(tasks));
  EXPECT_EQ(num_right, 2 * static_cast<int>(kGroups) * kEach);
}

CHECK_CASE(split_processes_share_one_mesh) {
  // Ranks that are threads here, but with a mesh as processes have it.
  const NoLeakedDescriptors descriptors;
  const std::string key = fresh_key();
  std::vector<std::function<void()>> tasks;
  for (int rank = 0; rank < 3; ++rank) {
    tasks.emplace_back([rank, key] {
      const auto comm = Communicator::of_processes(options_for(rank, 3, key), false);
      auto pair = comm->split(rank == 2 ? std::nullopt : std::optional<int64_t>(5), 0, 20'000'000'000, nullptr);
      auto all = comm->split(1, -rank, 20'000'000'000, nullptr);
      comm->close();
      int64_t value = rank + 1;
      CollectiveCall call;
      call.collective = Collective::kAllReduce;
      call.algo = Algo::kAuto;
      call.dtype = call.wire = DType::kI64;
      call.in = call.out = &value;
      call.count = 1;
      all->run(call, 20'000'000'000, nullptr);
      EXPECT_EQ(value, 6);
      EXPECT_EQ(all->rank(), 2 - rank);
      if (pair != nullptr) {
        pair->run(call, 20'000'000'000, nullptr);
        EXPECT_EQ(value, 12);
      }
      all->close();
      if (rank == 0) return pair->close();
      if (rank == 1) {
        const auto outcomes = run_threads({[&] { pair->run(call, 20'000'000'000, nullptr); }});
        EXPECT_ERROR(outcomes[0], ErrorCode::kPeerLost, "rank 0");
      }
    });
  }
  expect_no_errors(run_threads(tasks));
  descriptors.verify();
}

}  // namespace dcomm::checks
