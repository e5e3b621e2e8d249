// Communicator::split: agreement over the parent, windows, a last agreement. Floor: comm.
//
// All ranks of the parent go through the same four small collectives, also those without a color: so a failure on one
// is raised by all and leaves the parent in order. Only a rank that is lost meanwhile breaks it.
#include "comm/split.h"

#include <algorithm>
#include <chrono>
#include <type_traits>

#include "comm/communicator.h"
#include "protocol/fingerprint.h"

namespace dcomm {

std::optional<SplitPlan> plan_split(const std::vector<SplitVote>& votes, int own_rank, uint64_t parent_id,
                                    uint64_t number) {
  const SplitVote& own = votes[static_cast<size_t>(own_rank)];
  if (own.has_color == 0) return {};
  SplitPlan plan;
  plan.id = hash_mix(hash_mix(hash_mix(parent_id, number), static_cast<uint64_t>(own.color)), 0);
  for (size_t rank = 0; rank < votes.size(); ++rank) {
    if (votes[rank].has_color != 0 && votes[rank].color == own.color) plan.members.push_back(static_cast<int>(rank));
  }
  const auto key_of = [&](int rank) { return votes[static_cast<size_t>(rank)].key; };
  std::stable_sort(plan.members.begin(), plan.members.end(), [&](int a, int b) { return key_of(a) < key_of(b); });
  plan.rank = static_cast<int>(std::find(plan.members.begin(), plan.members.end(), own_rank) - plan.members.begin());
  return plan;
}

ThreadParts ThreadParts::make(int world_size, const Settings& settings) {
  return {make_heap_windows(world_size, settings.layout(world_size).window_bytes()),
          std::make_shared<PeerExits>(world_size),
          std::make_shared<CudaThreadGroup>(world_size, CudaGroupOptions::from_environment())};
}

void ThreadFamily::offer(uint64_t id, ThreadParts parts) {
  const std::lock_guard lock(mutex_);
  offers_[id] = std::move(parts);
}

ThreadParts ThreadFamily::take(uint64_t id) {
  const std::lock_guard lock(mutex_);
  return offers_.at(id);
}

void ThreadFamily::forget(uint64_t id) {
  const std::lock_guard lock(mutex_);
  offers_.erase(id);
}

/// One split as one rank goes through it.
class Communicator::Splitting {
 public:
  Splitting(Communicator& parent, int64_t timeout_ns, InterruptCheck interrupted)
      : parent_(parent),
        timeout_ns_(timeout_ns > 0 ? timeout_ns : parent.settings_.timeout_ns),
        interrupted_(interrupted) {}

  std::shared_ptr<Communicator> run(const SplitVote& vote) {
    const auto plan = plan_split(gather(vote), parent_.rank(), parent_.id_, ++parent_.num_splits_);
    const Settings settings = agree_on_settings(plan);
    if (!plan) {
      agree();
      agree();
      return nullptr;
    }
    const bool alone = plan->members.size() == 1;
    return parent_.mesh_ == nullptr || alone ? of_threads(*plan, settings) : of_processes(*plan, settings);
  }

 private:
  template <class T>
  std::vector<T> gather(const T& own) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % sizeof(int64_t) == 0);
    std::vector<T> all(static_cast<size_t>(parent_.world_size()));
    CollectiveCall call;
    call.collective = Collective::kAllGather;
    call.dtype = call.wire = DType::kI64;
    call.in = &own;
    call.out = all.data();
    call.count = sizeof(T) / sizeof(int64_t);
    parent_.run_in_order(call, timeout_ns_, interrupted_);
    return all;
  }

  /// Returns when every rank has come here without an error; else all raise.
  void agree(const Error* own_error = nullptr) {
    const int64_t own = own_error == nullptr ? 0 : static_cast<int64_t>(own_error->code());
    const std::vector<int64_t> codes = gather(own);
    if (own_error != nullptr) throw Error(*own_error);
    for (size_t rank = 0; rank < codes.size(); ++rank) {
      DCOMM_CHECK(codes[rank] == 0, static_cast<ErrorCode>(codes[rank]), "split: rank ", rank,
                  " could not make its part of the new communicator; its own error says why. This communicator is "
                  "still usable");
    }
  }

  /// Runs `step`, then agrees; the error of `step` is raised here, and as one of the same type on all others.
  template <class Step>
  void agree_after(const Step& step) {
    try {
      step();
    } catch (const Error& error) {
      if (!parent_.broken_.load(std::memory_order_acquire)) agree(&error);
      throw;
    }
    agree();
  }

  struct Offer {
    int64_t code = 0;
    Settings settings;
  };

  /// Those of the child's first rank.
  Settings agree_on_settings(const std::optional<SplitPlan>& plan) {
    Offer own;
    std::optional<Error> own_error;
    if (plan) {
      try {
        own.settings =
            Settings::from_environment(static_cast<int>(plan->members.size()), parent_.settings_.deterministic);
      } catch (const Error& error) {
        own_error = error;
        own.code = static_cast<int64_t>(error.code());
      }
    }
    const std::vector<Offer> offers = gather(own);
    if (own_error) throw Error(*own_error);
    for (size_t rank = 0; rank < offers.size(); ++rank) {
      DCOMM_CHECK(offers[rank].code == 0, static_cast<ErrorCode>(offers[rank].code), "split: rank ", rank,
                  " could not read its settings; its own error says why. This communicator is still usable");
    }
    return plan ? offers[static_cast<size_t>(plan->members.front())].settings : own.settings;
  }

  std::shared_ptr<Communicator> of_threads(const SplitPlan& plan, const Settings& settings) {
    // A process that is alone in its child is as good as a thread.
    const auto family = parent_.family_ != nullptr ? parent_.family_ : std::make_shared<ThreadFamily>();
    const int world_size = static_cast<int>(plan.members.size());
    agree_after([&] {
      if (plan.rank == 0) family->offer(plan.id, ThreadParts::make(world_size, settings));
    });
    std::shared_ptr<Communicator> child;
    agree_after([&] {
      const ThreadParts parts = family->take(plan.id);
      child.reset(new Communicator(plan.rank, parts.windows, settings));
      child->join_threads(parts, family, plan.id);
    });
    if (plan.rank == 0) family->forget(plan.id);
    return child;
  }

  std::shared_ptr<Communicator> of_processes(const SplitPlan& plan, const Settings& settings) {
    SharedMesh& mesh = *parent_.mesh_;
    const int world_size = static_cast<int>(plan.members.size());
    std::vector<int> mesh_ranks;
    for (const int member : plan.members) mesh_ranks.push_back(parent_.mesh_ranks_[static_cast<size_t>(member)]);
    bool in_agreement = false;
    const auto exchange = [&](int descriptor) {
      in_agreement = true;
      agree();  // everybody has a window to give
      in_agreement = false;
      start_ = Clock::now();
      return mesh.exchange_windows(plan.id, mesh_ranks, descriptor, [&](int member) { look(plan, member); });
    };
    std::shared_ptr<Communicator> child;
    mesh.expect_windows(plan.id);
    try {
      auto windows = make_memfd_windows(plan.rank, world_size, settings.layout(world_size).window_bytes(), exchange,
                                        parent_.force_shm_);
      child.reset(new Communicator(plan.rank, std::move(windows), settings));
      child->force_shm_ = parent_.force_shm_;
      child->join_mesh(parent_.mesh_, plan.id, mesh_ranks);
    } catch (const Error& error) {
      mesh.forget_windows(plan.id);
      // A failed agreement is known to all; so is what broke the parent.
      if (!in_agreement && !parent_.broken_.load(std::memory_order_acquire)) agree(&error);
      throw;
    }
    mesh.forget_windows(plan.id);
    agree();
    return child;
  }

  /// Called now and then while the windows of other ranks are awaited; throws when they will not come.
  void look(const SplitPlan& plan, int member) {
    OpRecord record;
    record.collective = Collective::kSplit;
    record.seq = parent_.seq_ + 1;
    HostOp op;
    op.seq = record.seq;
    LaneBarrier one_lane(1);
    HostExec exec(parent_.context_, op, one_lane, 0, 0, parent_.scratch_);
    const int64_t waited_ns = std::chrono::nanoseconds(Clock::now() - start_).count();
    const int own = parent_.rank();
    if (exec.is_stopped()) parent_.fail_with(record, op.failure, "");
    if (waited_ns >= timeout_ns_) {
      const int suspect = plan.members[static_cast<size_t>(member)];
      parent_.fail_with(record, {ErrorCode::kTimeout, suspect, own, AbortDetail::kNone, waited_ns}, "");
    }
    if (interrupted_ != nullptr && interrupted_(nullptr)) {
      parent_.fail_with(record, {ErrorCode::kInterrupted, own, own, AbortDetail::kInterrupted, waited_ns}, "");
    }
  }

  using Clock = std::chrono::steady_clock;

  Communicator& parent_;
  const int64_t timeout_ns_;
  const InterruptCheck interrupted_;
  Clock::time_point start_;
};

std::shared_ptr<Communicator> Communicator::run_split(const SplitVote& vote, int64_t timeout_ns,
                                                      InterruptCheck interrupted) {
  return Splitting(*this, timeout_ns, interrupted).run(vote);
}

}  // namespace dcomm
