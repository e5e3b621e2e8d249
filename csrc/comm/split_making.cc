// Communicator::split: agreement over the parent, windows, a last agreement. Floor: comm.
//
// All ranks of the parent go through the same four small collectives, also those without a color (comm/agreement.h).
#include "base/failpoint.h"
#include "comm/agreement.h"
#include "comm/entry.h"
#include "comm/split.h"

namespace dcomm {

/// One split as one rank goes through it.
class Communicator::Splitting {
 public:
  Splitting(Communicator& parent, int64_t timeout_ns, InterruptCheck interrupted)
      : parent_(parent), agreement_(parent, {Collective::kSplit, "new communicator"}, timeout_ns, interrupted) {}

  std::shared_ptr<Communicator> run(const SplitVote& vote) {
    const auto plan = plan_split(agreement_.gather(vote), parent_.rank(), parent_.id_, ++parent_.num_splits_);
    const Settings settings = agree_on_settings(plan);
    if (!plan) {
      agreement_.agree();
      agreement_.agree();
      return nullptr;
    }
    const bool alone = plan->members.size() == 1;
    return parent_.mesh_ == nullptr || alone ? of_threads(*plan, settings) : of_processes(*plan, settings);
  }

 private:
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
    const std::vector<Offer> offers = agreement_.gather(own);
    if (own_error) throw Error(*own_error);
    for (size_t rank = 0; rank < offers.size(); ++rank) {
      DCOMM_CHECK(offers[rank].code == 0, static_cast<ErrorCode>(offers[rank].code), "split: rank ", rank,
                  " could not read its settings; its own error says why. This communicator is still usable");
    }
    return plan ? offers[static_cast<size_t>(plan->members.front())].settings : own.settings;
  }

  std::shared_ptr<Communicator> of_threads(const SplitPlan& plan, const Settings& settings) {
    std::shared_ptr<Communicator> child;
    const int world_size = static_cast<int>(plan.members.size());
    agreement_.share_parts(
        plan.id, plan.rank == 0, [&] { return ThreadParts::make(world_size, settings); },
        [&](const ThreadParts& parts, const std::shared_ptr<ThreadFamily>& family) {
          child.reset(new Communicator(plan.rank, parts.windows, settings));
          child->join_threads(parts, family, plan.id, agreement_.mesh_ranks_of(plan.members));
        });
    return child;
  }

  std::shared_ptr<Communicator> of_processes(const SplitPlan& plan, const Settings& settings) {
    std::shared_ptr<Communicator> child;
    const int world_size = static_cast<int>(plan.members.size());
    const size_t window_bytes = settings.layout(world_size).window_bytes();
    agreement_.exchange_windows(plan.id, plan.members, [&](const DescriptorExchange& exchange) {
      failpoint("split_agreed");
      auto windows = make_memfd_windows(plan.rank, world_size, window_bytes, exchange, parent_.force_shm_);
      child.reset(new Communicator(plan.rank, std::move(windows), settings));
      child->force_shm_ = parent_.force_shm_;
      child->join_mesh(parent_.mesh_, plan.id, agreement_.mesh_ranks_of(plan.members));
      failpoint("split_joined");
    });
    failpoint("split_made");
    return child;
  }

  Communicator& parent_;
  Agreement agreement_;
};

std::shared_ptr<Communicator> Communicator::split(std::optional<int64_t> color, int64_t key, int64_t timeout_ns,
                                                  InterruptCheck interrupted) {
  const Entry entry(entered_);
  check_usable();
  return Splitting(*this, timeout_ns, interrupted).run({color ? 1 : 0, color.value_or(0), key});
}

}  // namespace dcomm
