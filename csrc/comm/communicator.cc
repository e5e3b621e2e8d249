#include "comm/communicator.h"

#include <cstring>
#include <numeric>

#include "base/failpoint.h"
#include "comm/call_site.h"
#include "comm/entry.h"
#include "comm/failure_text.h"
#include "comm/fork_guard.h"
#include "exec/message_bell.h"

namespace dcomm {

namespace {

/// Rank 0's settings, which all use. What the program asked for must be the same everywhere: throws
/// kInvalidArgument on every rank otherwise.
Settings agree(Mesh& mesh, const Settings& own) {
  std::vector<uint8_t> blob(sizeof(Settings));
  std::memcpy(blob.data(), &own, sizeof(Settings));
  const std::vector<std::vector<uint8_t>> blobs = mesh.all_gather(blob);
  Settings settings;
  for (size_t rank = 0; rank < blobs.size(); ++rank) {
    DCOMM_CHECK(blobs[rank].size() == sizeof(Settings), ErrorCode::kVersionMismatch, "rank ", rank,
                " sent settings of ", blobs[rank].size(), " bytes, this rank expects ", sizeof(Settings),
                "; install the same dcomm everywhere");
    Settings theirs;
    std::memcpy(&theirs, blobs[rank].data(), sizeof(Settings));
    if (rank == 0) settings = theirs;
    const auto text = [](bool flag) { return flag ? "True" : "False"; };
    DCOMM_CHECK(theirs.deterministic == settings.deterministic, ErrorCode::kInvalidArgument,
                "deterministic differs: rank 0 has ", text(settings.deterministic), ", rank ", rank, " has ",
                text(theirs.deterministic), "; pass the same deterministic= (or DCOMM_DETERMINISTIC) on all ranks");
  }
  return settings;
}

std::vector<int> all_ranks(int world_size) {
  std::vector<int> ranks(static_cast<size_t>(world_size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

}  // namespace

Communicator::Communicator(int rank, std::shared_ptr<Windows> windows, const Settings& settings)
    : settings_(settings),
      context_(rank, windows, settings.layout(windows->world_size())),
      scratch_(context_),
      kernel_table_(kernel_table_from_environment()),
      messages_(context_, scratch_),
      queue_(
          [this](const Work& work) {
            check_usable();
            queued_site_ = work.call_site();
            execute(work.call(), work.timeout_ns(), nullptr, true);
            queued_site_.clear();
          },
          [this] { serve_messages(); }) {
  install_fork_guard();
  fork_generation_ = fork_generation();
  if (settings_.first_number == 0) return;
  seq_ = settings_.first_number;
  context_.start_after(settings_.first_number);
}

bool Communicator::in_child() const { return fork_generation() != fork_generation_; }

std::vector<std::shared_ptr<Communicator>> Communicator::of_threads(int world_size, bool deterministic) {
  DCOMM_CHECK(world_size >= 1, ErrorCode::kInvalidArgument, "world_size=", world_size, ": expected at least 1");
  const Settings settings = Settings::from_environment(world_size, deterministic);
  const ThreadParts parts = ThreadParts::make(world_size, settings);
  const auto family = std::make_shared<ThreadFamily>();
  std::vector<std::shared_ptr<Communicator>> communicators;
  for (int rank = 0; rank < world_size; ++rank) {
    communicators.emplace_back(new Communicator(rank, parts.windows, settings));
    communicators.back()->join_threads(parts, family, 0, all_ranks(world_size));
  }
  return communicators;
}

std::shared_ptr<Communicator> Communicator::of_processes(const MeshOptions& options, bool force_shm,
                                                         bool deterministic) {
  DCOMM_CHECK(options.world_size >= 1 && options.rank >= 0 && options.rank < options.world_size,
              ErrorCode::kInvalidArgument, "rank=", options.rank, ", world_size=", options.world_size,
              ": expected 0 <= rank < world_size");
  install_fork_guard();
  std::shared_ptr<Mesh> mesh = Mesh::connect(options);
  const Settings settings = agree(*mesh, Settings::from_environment(options.world_size, deterministic));
  const size_t window_bytes = settings.layout(options.world_size).window_bytes();
  auto windows = make_memfd_windows(
      options.rank, options.world_size, window_bytes,
      [&](int descriptor) { return mesh->exchange_descriptors(descriptor); }, force_shm);
  std::shared_ptr<Communicator> self(new Communicator(options.rank, std::move(windows), settings));
  self->force_shm_ = force_shm;
  failpoint("windows_mapped");
  mesh->barrier();  // everybody has mapped everybody
  self->join_mesh(std::make_shared<SharedMesh>(mesh), 0, all_ranks(options.world_size));
  return self;
}

void Communicator::join_mesh(std::shared_ptr<SharedMesh> mesh, uint64_t id, std::vector<int> mesh_ranks) {
  for (const int peer : mesh_ranks) {
    pids_.push_back(peer == mesh->own_rank() ? 0 : static_cast<int>(mesh->peer(peer).pid));
  }
  mesh_ = std::move(mesh);
  mesh_ranks_ = std::move(mesh_ranks);
  id_ = id;
  const auto on_exit = [this](int peer, AbortDetail how) {  // not called after leave()
    context_.exits->set(peer, how);
    raise_attention(context_, rank());
    wake_sleepers(context_, rank());
    const std::lock_guard lock(cuda_mutex_);
    if (cuda_processes_ != nullptr) cuda_processes_->note_exit(peer, how == AbortDetail::kDied);
  };
  const auto on_stop = [this](int peer) {
    stop_cuda({ErrorCode::kAborted, "rank " + std::to_string(peer) + " aborted the communicator" +
                                        because(context_, peer) + "; look at its output, and start a new one"});
  };
  mesh_->join(id, {mesh_ranks_, on_exit, on_stop});
  listing_.enter({&context_, mesh_.get(), mesh_ranks_, ""});
}

void Communicator::join_threads(const ThreadParts& parts, std::shared_ptr<ThreadFamily> family, uint64_t id,
                                std::vector<int> family_ranks) {
  context_.exits = parts.exits;
  cuda_group_ = parts.cuda_group;
  family_ = std::move(family);
  mesh_ranks_ = std::move(family_ranks);
  id_ = id;
  listing_.enter({&context_, family_.get(), mesh_ranks_, ""});
}

Communicator::~Communicator() {
  leave(false);
  if (in_child()) {
    listing_.abandon();
  } else {
    listing_.strike();
  }
}

CommunicatorStats Communicator::stats() const {
  CommunicatorStats stats{num_operations_.load(std::memory_order_relaxed),
                          num_bytes_.load(std::memory_order_relaxed),
                          num_sent_bytes_.load(std::memory_order_relaxed),
                          num_direct_.load(std::memory_order_relaxed),
                          {}};
  for (const auto& waited : context_.waited_ns) stats.waited_ns.push_back(waited.load(std::memory_order_relaxed));
  return stats;
}

std::vector<AbortDetail> Communicator::exits() const {
  std::vector<AbortDetail> exits;
  for (int peer = 0; peer < world_size(); ++peer) exits.push_back(context_.exits->get(peer));
  return exits;
}

void Communicator::check_usable() const {
  DCOMM_CHECK(!in_child(), ErrorCode::kForked,
              "this communicator belongs to the parent process; a forked child must not use it. Start data-loader "
              "workers with the spawn method, or call dcomm.init() in the child");
  if (DCOMM_UNLIKELY(broken_.load(std::memory_order_acquire))) {
    std::string message = broken_reason_.what();
    NamedRanks ranks = broken_reason_.ranks();
    if (broken_reason_.code() == ErrorCode::kPeerLost) add_other_deaths(message, ranks);
    throw Error(broken_reason_.code(), message, ranks);
  }
  DCOMM_CHECK(!closed(), ErrorCode::kAborted, "this communicator is closed; make a new one with dcomm.init()");
}

namespace {

/// Of an all-reduce. A sum is encoded twice, whatever the number of ranks: in two_shot alone.
void check_block_scaled(const CollectiveCall& call) {
  const char* const wire = dtype_name(call.wire);
  DCOMM_CHECK(call.op == ReduceOp::kSum || call.op == ReduceOp::kAvg || call.op == ReduceOp::kPremulSum,
              ErrorCode::kInvalidArgument, "wire_dtype=", wire, " with op='", reduce_op_name(call.op),
              "': it carries sums, averages and premul_sum; pass wire_dtype='float16' or None");
  DCOMM_CHECK(call.algo == Algo::kAuto || call.algo == Algo::kTwoShot, ErrorCode::kInvalidArgument, "wire_dtype=", wire,
              " with algo='", algo_name(call.algo),
              "': only two_shot rounds each sum as often however many ranks there are; pass algo='auto' or 'two_shot', "
              "or wire_dtype='float16'");
}

}  // namespace

/// What holds wherever the arrays are; of most all-reduces the algorithm is still open.
void Communicator::complete_call(CollectiveCall& call) const {
  const bool from_any = call.collective == Collective::kRecv && call.root == kAnySource;
  DCOMM_CHECK(!from_any || world_size() > 1, ErrorCode::kInvalidArgument,
              "recv_any: this communicator has one rank, nobody else can send; call it where there are others");
  DCOMM_CHECK(from_any || (call.root >= 0 && call.root < world_size()), ErrorCode::kInvalidArgument, "rank ", call.root,
              " as src or dst: expected a rank from 0 to ", world_size() - 1);
  if (call.lengths != nullptr) {
    const auto n = static_cast<size_t>(world_size());
    DCOMM_CHECK(call.lengths->send.size() == n && call.lengths->recv.size() == n, ErrorCode::kInvalidArgument,
                "send_counts has ", call.lengths->send.size(), " and recv_counts ", call.lengths->recv.size(),
                " numbers: expected one for each of ", n, " ranks");
  }
  DCOMM_CHECK(!is_message(call.collective) || call.root != rank(), ErrorCode::kInvalidArgument,
              collective_name(call.collective), ": rank ", call.root,
              " is this rank itself; copy the array, or pass another rank");
  DCOMM_CHECK(call.tag >= 0, ErrorCode::kInvalidArgument, "tag=", call.tag, ": expected 0 to 2147483647");
  if (!reduces(call.collective)) return;
  DCOMM_CHECK(is_defined(call.op, call.dtype), ErrorCode::kInvalidArgument, "op='", reduce_op_name(call.op),
              "' is not defined for ", dtype_name(call.dtype),
              " arrays: avg needs floats or complex numbers, premul_sum floats, prod, min and max no complex numbers, "
              "band, bor and bxor integers or bool; convert the array, or use op='sum'");
  DCOMM_CHECK(call.wire == call.dtype || (call.dtype == DType::kF32 && is_narrow(call.wire)),
              ErrorCode::kInvalidArgument, "wire_dtype=", dtype_name(call.wire), " with a ", dtype_name(call.dtype),
              " array: only float32 arrays can travel as float16, bfloat16 or fp8; pass wire_dtype=None");
  if (DCOMM_UNLIKELY(is_block_scaled(call.wire))) {
    check_block_scaled(call);
    call.algo = Algo::kTwoShot;
  }
}

void Communicator::check_direct(const CollectiveCall& call, bool is_shared) const {
  DCOMM_CHECK(call.algo != Algo::kDirect || is_shared || call.count == 0, ErrorCode::kInvalidArgument,
              "algo='direct' with ",
              call.wire != call.dtype           ? "another wire_dtype than the array's"
              : call.op == ReduceOp::kPremulSum ? "premul_sum"
                                                : "memory that the other ranks do not reach",
              ": it is for arrays made by this communicator's comm.empty, or contiguous parts of them, without "
              "wire_dtype and premul_sum; make the array with comm.empty, or use algo='auto'");
}

/// Of arrays of the host.
void Communicator::choose_algo(CollectiveCall& call) {
  if (lends_input_only(call.collective)) return choose_lending(call);
  if (call.collective != Collective::kAllReduce) return;
  if (DCOMM_UNLIKELY(!regions_.empty())) regions_.look_up(call);
  const bool is_shared = can_go_direct(call);
  check_direct(call, is_shared);
  call.algo = select_algo(settings_, call.algo, call.count * dtype_bytes(call.wire), is_shared);
}

/// "auto" on a communicator that has made regions, which all ranks know alike: they find out in the operation whether
/// all have their input in one. It costs two signals, so for small messages nobody asks.
void Communicator::choose_lending(CollectiveCall& call) {
  constexpr uint64_t kMinAskBytes = 32 << 10;
  DCOMM_CHECK(call.algo == Algo::kAuto || call.algo == Algo::kDirect || call.algo == Algo::kFlat,
              ErrorCode::kInvalidArgument, "algo='", algo_name(call.algo),
              "' is an all_reduce's: ", collective_name(call.collective), " has 'auto', 'direct' and 'flat'");
  const bool has_regions = num_regions_ > 0;
  if (DCOMM_UNLIKELY(has_regions && call.algo != Algo::kFlat)) regions_.look_up_input(call, rank(), world_size());
  check_direct(call, call.shared_in.windows != nullptr);
  if (call.algo != Algo::kAuto) return;
  const uint64_t nbytes = call.count * static_cast<uint64_t>(world_size()) * dtype_bytes(call.dtype);
  const Algo forced = settings_.forced_algo;
  const bool asks = has_regions && (forced == Algo::kDirect || (forced == Algo::kAuto && nbytes > kMinAskBytes));
  if (asks) return;
  call.algo = Algo::kFlat;
  call.shared_in = {};
}

int Communicator::run(CollectiveCall call, int64_t timeout_ns, InterruptCheck interrupted) {
  const Entry entry(entered_);
  check_usable();
  complete_call(call);
  choose_algo(call);
  return run_in_order(call, timeout_ns, interrupted);
}

void Communicator::release(Region& region) {
  if (in_child()) return;
  const Entry entry(entered_);
  queue_.wait_until_empty();
  regions_.remove(region);
  if (region.adopted != nullptr) region.adopted->give_back();
}

/// At once where nothing is queued, else behind what is; a message beside the messages that are.
int Communicator::run_in_order(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted) {
  if (queue_.is_empty()) {
    if (is_message(call.collective)) return execute_message(call, timeout_ns, interrupted);
    execute(call, timeout_ns, interrupted, false);
    return -1;
  }
  const auto work = std::make_shared<Work>(call, timeout_ns);
  push(work);
  while (!work->wait_for(std::chrono::milliseconds(50))) {
    if (interrupted != nullptr && interrupted(nullptr)) {
      this->abort();
      while (!work->wait_for(std::chrono::milliseconds(50))) {
      }  // the progress thread uses the caller's arrays until the operation has ended, which abort() hastens
      throw Error(ErrorCode::kInterrupted, "interrupted");
    }
  }
  if (const std::optional<Error> error = work->error()) throw Error(*error);
  return work->source();
}

void Communicator::push(const std::shared_ptr<Work>& work) {
  queue_.push(work);
  ring_message_bell(context_, rank());  // the progress thread may be waiting for messages
}

std::shared_ptr<Work> Communicator::enqueue(CollectiveCall call, int64_t timeout_ns, InterruptCheck interrupted) {
  const Entry entry(entered_);
  check_usable();
  complete_call(call);
  choose_algo(call);
  auto work = std::make_shared<Work>(call, timeout_ns, recorded_call_site());
  if (can_announce(call)) {
    if (world_size() > 1) announce(call);
    if (all_peers_enter()) {
      try {
        execute(call, timeout_ns, interrupted, false);
        work->finish({});
      } catch (const Error& error) {
        if (error.code() == ErrorCode::kInterrupted) throw;
        work->finish(error);
      }
      return work;
    }
  }
  push(work);
  return work;
}

void Communicator::set_timeout(int64_t timeout_ns) {
  const Entry entry(entered_);
  DCOMM_CHECK(timeout_ns > 0, ErrorCode::kInvalidArgument, "timeout of ", timeout_ns, " ns: expected more than 0");
  queue_.wait_until_empty();
  settings_.timeout_ns = timeout_ns;
}

void Communicator::close() { leave(true); }

void Communicator::leave(bool finish_queue, GoodbyeKind kind) {
  if (finish_queue && !in_child()) queue_.wait_until_empty();
  if (closed_.exchange(true, std::memory_order_acq_rel)) return;
  if (in_child()) {
    queue_.abandon();
    if (cuda_processes_ != nullptr) cuda_processes_->abandon();
    return;
  }
  if (!finish_queue && !queue_.is_empty()) {
    AbortReason reason;
    reason.code = ErrorCode::kAborted;
    reason.reporter = static_cast<uint16_t>(rank());
    reason.culprit = static_cast<uint16_t>(rank());
    broadcast_abort(context_, reason);
  }
  failpoint("closing");
  queue_.stop();
  leave_cuda();
  if (mesh_ != nullptr) return mesh_->leave(id_, kind);  // says goodbye
  if (cuda_group_ != nullptr) cuda_group_->leave(rank());
  context_.exits->set(rank(), AbortDetail::kLeft);
  for (int peer = 0; peer < world_size(); ++peer) {
    raise_attention(context_, peer);
    wake_sleepers(context_, peer);
  }
}

}  // namespace dcomm
