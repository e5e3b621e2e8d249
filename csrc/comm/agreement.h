// What ranks do together to make something new: gather, agree that all went well, exchange windows. Floor: comm.
//
// All ranks of the communicator go through the same small collectives, also those that take no part in what is made: so
// a failure on one is raised by all and leaves the communicator in order. Only a rank that is lost meanwhile breaks it.
#pragma once

#include <algorithm>
#include <chrono>
#include <numeric>
#include <type_traits>

#include "comm/communicator.h"
#include "comm/cuda_windows.h"

namespace dcomm {

/// One making of something, as one rank goes through it.
class Communicator::Agreement {
 public:
  /// What is made, in texts: what the call is named by, and what its result is ("new communicator").
  struct Subject {
    Collective call;
    const char* product;
  };

  Agreement(Communicator& parent, Subject subject, int64_t timeout_ns, InterruptCheck interrupted)
      : parent_(parent),
        subject_(subject),
        timeout_ns_(timeout_ns > 0 ? timeout_ns : parent.settings_.timeout_ns),
        interrupted_(interrupted) {}

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
      DCOMM_CHECK(codes[rank] == 0, static_cast<ErrorCode>(codes[rank]), collective_name(subject_.call), ": rank ",
                  rank, " could not make its part of the ", subject_.product,
                  "; its own error says why. This communicator is still usable");
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

  /// Two agreements. Where ranks are threads (a process that is alone is as good as one) the first of the members makes
  /// what they have in common: finish(parts, family) on all.
  template <class Make, class Finish>
  void share_parts(uint64_t id, bool is_first, const Make& make, const Finish& finish) {
    const auto family = parent_.family_ != nullptr ? parent_.family_ : std::make_shared<ThreadFamily>();
    agree_after([&] {
      if (is_first) family->offer(id, make());
    });
    agree_after([&] { finish(family->take(id), family); });
    if (is_first) family->forget(id);
  }

  /// Two agreements. Where ranks are processes each of `members` (ranks of the parent) makes a window and maps those of
  /// the others: make(exchange) on all.
  template <class Make>
  void exchange_windows(uint64_t id, const std::vector<int>& members, const Make& make) {
    SharedMesh& mesh = *parent_.mesh_;
    const std::vector<int> mesh_ranks = mesh_ranks_of(members);
    bool in_agreement = false;
    const auto exchange = [&](int descriptor) {
      in_agreement = true;
      agree();  // everybody has a window to give
      in_agreement = false;
      start_ = Clock::now();
      return mesh.exchange_windows(id, mesh_ranks, descriptor,
                                   [&](int member) { look(members[static_cast<size_t>(member)]); });
    };
    mesh.expect_windows(id);
    try {
      make(exchange);
    } catch (const Error& error) {
      mesh.forget_windows(id);
      // A failed agreement is known to all; so is what broke the parent.
      if (!in_agreement && !parent_.broken_.load(std::memory_order_acquire)) agree(&error);
      throw;
    }
    mesh.forget_windows(id);
    agree();
  }

  /// The same on the ranks' GPUs, for all ranks of the parent: `windows` holds the own one and the others', then then()
  /// is done by all. Several agreements.
  template <class Then>
  void exchange_cuda_windows(uint64_t id, CudaWindowSet& windows, const DcommCudaWindowOptions& options,
                             const Then& then) {
    std::vector<int> all(static_cast<size_t>(parent_.world_size()));
    std::iota(all.begin(), all.end(), 0);
    if (options.kind == kDcommCudaWindowVmm) {
      exchange_windows(id, all, [&](const DescriptorExchange& exchange) {
        windows.make_own(options);
        const std::vector<UniqueFd> descriptors =
            take_ownership(exchange(windows.own_descriptor()), parent_.rank(), parent_.world_size());
        windows.close_own_descriptor();
        windows.import_all(gather(windows.handle()), &descriptors);
        then();
      });
      return;
    }
    agree_after([&] { windows.make_own(options); });
    const std::vector<DcommCudaWindowHandle> handles = gather(windows.handle());
    agree_after([&] {
      windows.import_all(handles, nullptr);
      then();
    });
  }

  std::vector<int> mesh_ranks_of(const std::vector<int>& members) const {
    std::vector<int> mesh_ranks;
    for (const int member : members) mesh_ranks.push_back(parent_.mesh_ranks_[static_cast<size_t>(member)]);
    return mesh_ranks;
  }

 private:
  /// Called now and then while the window of `suspect` is awaited; throws when it will not come.
  void look(int suspect) {
    OpRecord record;
    record.collective = subject_.call;
    record.seq = parent_.seq_ + 1;
    HostOp op;
    op.seq = record.seq;
    LaneBarrier one_lane(1);
    HostExec exec(parent_.context_, op, one_lane, 0, 0, parent_.scratch_);
    const int64_t waited_ns = std::chrono::nanoseconds(Clock::now() - start_).count();
    const int own = parent_.rank();
    if (exec.is_stopped()) parent_.fail_with(record, op.failure, "");
    if (waited_ns >= timeout_ns_) {
      parent_.fail_with(record, {ErrorCode::kTimeout, suspect, own, AbortDetail::kNone, waited_ns}, "");
    }
    if (interrupted_ != nullptr && interrupted_(nullptr)) {
      parent_.fail_with(record, {ErrorCode::kInterrupted, own, own, AbortDetail::kInterrupted, waited_ns}, "");
    }
  }

  using Clock = std::chrono::steady_clock;

  Communicator& parent_;
  const Subject subject_;
  const int64_t timeout_ns_;
  const InterruptCheck interrupted_;
  Clock::time_point start_;
};

}  // namespace dcomm
