// CUDA operations between processes: how the ranks make windows on their GPUs together, and what ends them.
// Floor: comm.
#include <atomic>
#include <cstdio>
#include <memory>
#include <optional>
#include <vector>

#include "comm/agreement.h"
#include "comm/cuda_notes.h"
#include "comm/cuda_windows.h"
#include "launch/cuda_agreement.h"
#include "launch/cuda_loader.h"
#include "protocol/fingerprint.h"

namespace dcomm {

namespace {

constexpr uint64_t kCudaSalt = 0x63756461ull;
/// Contexts of several processes take turns of some milliseconds on one GPU, and every step of an algorithm may cost
/// one turn of each.
constexpr int64_t kSharedGpuTimeoutNs = 30'000'000'000;

struct GroupDeleter {
  const DcommCudaTable* table = nullptr;
  bool keeps_windows = false;
  void operator()(DcommCudaGroup* group) const {
    if (keeps_windows) table->group_keep_windows(group);
    table->group_destroy(group);
  }
};
using Group = std::unique_ptr<DcommCudaGroup, GroupDeleter>;

void warn_of_shared_gpu(int num_sharing) {
  static std::atomic<bool> said{false};
  if (said.exchange(true)) return;
  std::fprintf(stderr,
               "dcomm: %d processes use one GPU, which gives each a turn of milliseconds: every step of a collective "
               "waits for several. Start NVIDIA's Multi-Process Service (nvidia-cuda-mps-control -d) before the "
               "processes, use one GPU for each, or make the ranks threads of one process (dcomm.init_threads)\n",
               num_sharing);
}

}  // namespace

/// One making as one rank goes through it.
class Communicator::CudaMaking {
 public:
  CudaMaking(Communicator& parent, int device, int64_t timeout_ns, InterruptCheck interrupted)
      : parent_(parent),
        device_(device),
        agreement_(parent, {Collective::kCudaSetUp, "windows on the GPUs"}, timeout_ns, interrupted) {}
  CudaMaking(const CudaMaking&) = delete;
  CudaMaking& operator=(const CudaMaking&) = delete;

  std::shared_ptr<CudaProcessGroup> run() {
    const std::vector<CudaRankFacts> facts = gather_facts();
    agreed_ = agree_on_cuda(facts);
    const uint64_t id = hash_mix(hash_mix(parent_.id_, ++parent_.num_cuda_makings_), kCudaSalt);
    const DcommCudaWindowOptions options{device_, agreed_.kind, world_size(), agreed_.num_channels, agreed_.slot_bytes,
                                         0};
    CudaWindowSet windows(*table_, device_, rank(), world_size());
    Group group;
    agreement_.exchange_cuda_windows(id, windows, options, [&] { group = join(windows); });
    if (agreed_.num_sharing > 1 && count_on_gpu_of(facts, rank()) > 1 && is_first_on_its_gpu(facts, rank())) {
      warn_of_shared_gpu(count_on_gpu_of(facts, rank()));
    }
    parent_.cuda_windows_are_kept_ = agreed_.kind == kDcommCudaWindowIpc;
    const CudaProcessOptions group_options{rank(), device_, agreed_.num_sharing > 1 ? kSharedGpuTimeoutNs : 0};
    return std::make_shared<CudaProcessGroup>(*table_, group.release(), events_, group_options, peers());
  }

 private:
  int rank() const { return parent_.rank(); }
  int world_size() const { return parent_.world_size(); }

  std::vector<CudaRankFacts> gather_facts() {
    CudaRankFacts own;
    std::optional<Error> own_error;
    try {
      table_ = &cuda_table();
      own.window_kinds = allowed_window_kinds_from_environment();
      const CudaGroupOptions options = CudaGroupOptions::from_environment();
      own.num_channels = options.num_channels;
      own.max_channels = options.max_channels;
      own.slot_bytes = options.slot_bytes;
      checked_cuda([&](char* text, size_t size) {
        return table_->device_facts(device_, world_size(), &own.device, text, size);
      });
    } catch (const Error& error) {
      own_error = error;
      own.code = static_cast<int64_t>(error.code());
    }
    const std::vector<CudaRankFacts> facts = agreement_.gather(own);
    if (own_error) throw Error(*own_error);
    return facts;
  }

  Group join(CudaWindowSet& windows) {
    const std::vector<DcommCudaWindow*> all = windows.list();
    const DcommCudaMembership membership{device_, world_size(),       rank(),    1, agreed_.num_channels,
                                         0,       agreed_.slot_bytes, all.data()};
    DcommCudaGroup* made = nullptr;
    checked_cuda([&](char* text, size_t size) { return table_->group_join(&membership, &made, text, size); });
    Group group(made, GroupDeleter{table_, agreed_.kind == kDcommCudaWindowIpc});
    windows.release();
    events_ = CudaEvents::create(*table_, device_);
    return group;
  }

  CudaProcessPeers peers() const {
    const auto notes = std::make_shared<CudaNotes>(parent_.context_);
    const int own = rank();
    return {parent_.pids_,
            [notes](const OpRecord& record) { notes->note_launching(record); },
            [notes](const OpRecord& record) { notes->note_launched(record); },
            [notes](int peer) { return notes->position(peer); },
            [notes, own](int peer) { return notes->messages(peer, own); },
            [notes](const DcommCudaFailure& failure) { return notes->describe_disagreement(failure); },
            [notes](const DcommCudaFailure& failure) { return notes->describe_stalled_message(failure); }};
  }

  Communicator& parent_;
  const int device_;
  Agreement agreement_;
  const DcommCudaTable* table_ = nullptr;
  CudaAgreed agreed_;
  std::shared_ptr<CudaEvents> events_;
};

std::shared_ptr<CudaProcessGroup> Communicator::cuda_processes() const {
  const std::lock_guard lock(cuda_mutex_);
  return cuda_processes_;
}

std::shared_ptr<CudaProcessGroup> Communicator::open_cuda_processes(int device, int64_t timeout_ns,
                                                                    InterruptCheck interrupted) {
  if (auto group = cuda_processes()) {
    DCOMM_CHECK(group->device() == device, ErrorCode::kInvalidArgument, "got cuda:", device,
                ", but this communicator uses cuda:", group->device(),
                " on this rank; make another communicator for another GPU");
    return group;
  }
  auto group = CudaMaking(*this, device, timeout_ns, interrupted).run();
  const std::lock_guard lock(cuda_mutex_);
  cuda_processes_ = group;
  for (int peer = 0; peer < world_size(); ++peer) {  // that were gone before the watcher knew of the group
    const AbortDetail exit = context_.exits->get(peer);
    if (exit != AbortDetail::kNone) group->note_exit(peer, exit == AbortDetail::kDied);
  }
  return group;
}

/// f(), after whose final errors the whole communicator is broken.
template <class F>
void Communicator::use_cuda_processes(CudaProcessGroup& group, const F& f) {
  try {
    f();
  } catch (const Error& error) {
    if (group.is_broken()) {
      AbortReason reason;  // for peers that wait on the host; those on the GPU know better
      reason.code = ErrorCode::kAborted;
      reason.reporter = reason.culprit = static_cast<uint16_t>(rank());
      broadcast_abort(context_, reason);
      set_broken(error);
    }
    throw;
  }
}

void Communicator::run_cuda_between_processes(const CudaRankCall& call) {
  const auto group = open_cuda_processes(call.device, call.timeout_ns, call.interrupted);
  use_cuda_processes(*group, [&] { group->run(call); });
}

void Communicator::synchronize_cuda_processes(int64_t timeout_ns) {
  const auto group = cuda_processes();
  if (group == nullptr) return;  // nothing has been launched
  use_cuda_processes(*group, [&] { group->synchronize_check(timeout_ns); });
}

void Communicator::check_cuda_reports() {
  if (cuda_group_ != nullptr) return cuda_group_->check_reports(rank());
  const auto group = cuda_processes();
  if (group != nullptr) use_cuda_processes(*group, [&] { group->check_reports(); });
}

void Communicator::stop_cuda(const Error& reason) {
  const std::lock_guard lock(cuda_mutex_);
  if (cuda_processes_ != nullptr) cuda_processes_->stop({reason.code(), reason.what(), reason.ranks()});
}

/// Waits for what runs on the GPU, 11 s at most; the goodbye comes after it.
void Communicator::leave_cuda() {
  std::shared_ptr<CudaProcessGroup> group;
  {
    const std::lock_guard lock(cuda_mutex_);
    group.swap(cuda_processes_);
  }
  if (group == nullptr) return;
  bool all_gone = true;
  for (int peer = 0; peer < world_size(); ++peer) {
    all_gone = all_gone && (peer == rank() || context_.exits->get(peer) != AbortDetail::kNone);
  }
  if (cuda_windows_are_kept_ && !all_gone) group->keep_windows();
}

}  // namespace dcomm
