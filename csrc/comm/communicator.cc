#include "comm/communicator.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <sstream>

#include "comm/entry.h"
#include "comm/failure_text.h"
#include "comm/fork_guard.h"
#include "exec/float_environment.h"
#include "exec/message_bell.h"
#include "launch/cuda_plan.h"
#include "protocol/fingerprint.h"

namespace dcomm {

namespace {

constexpr uint64_t kMaxPatientBytes = 32 << 10;  // about what a wake-up of the progress thread costs

/// The larger of a call's two arrays, on a rank that has both.
uint64_t array_bytes(const CollectiveCall& call, int world_size) {
  uint64_t count = call.count;
  if (call.lengths != nullptr) {
    for (const size_t length : call.lengths->send) count += length;
  } else if (has_blocks(call.collective)) {
    count *= static_cast<uint64_t>(world_size);
  }
  return count * dtype_bytes(call.dtype);
}

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

/// DCOMM_ALGO for a GPU; one that has no kernel for `dtype` says nothing.
Algo forced_cuda_algo(const Settings& settings, DType dtype) {
  const Algo forced = settings.forced_algo;
  return has_cuda_algo(forced, dtype) ? forced : Algo::kAuto;
}

/// Beyond the deadline of a kernel's waits, which is also 30 s at least where processes share a GPU.
constexpr int64_t kCudaWorkExtraNs = 35'000'000'000;

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
            execute(work.call(), work.timeout_ns(), nullptr, true);
          },
          [this] { serve_messages(); }) {
  install_fork_guard();
  fork_generation_ = fork_generation();
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
    communicators.back()->join_threads(parts, family, 0);
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
  mesh->barrier();  // everybody has mapped everybody
  std::vector<int> mesh_ranks(static_cast<size_t>(options.world_size));
  std::iota(mesh_ranks.begin(), mesh_ranks.end(), 0);
  self->join_mesh(std::make_shared<SharedMesh>(mesh), 0, std::move(mesh_ranks));
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
    stop_cuda(ErrorCode::kAborted,
              "rank " + std::to_string(peer) + " aborted the communicator; look at its output, and start a new one");
  };
  mesh_->join(id, {mesh_ranks_, on_exit, on_stop});
}

void Communicator::join_threads(const ThreadParts& parts, std::shared_ptr<ThreadFamily> family, uint64_t id) {
  context_.exits = parts.exits;
  cuda_group_ = parts.cuda_group;
  family_ = std::move(family);
  id_ = id;
}

Communicator::~Communicator() { leave(false); }

CommunicatorStats Communicator::stats() const {
  CommunicatorStats stats{num_operations_.load(std::memory_order_relaxed),
                          num_bytes_.load(std::memory_order_relaxed),
                          num_sent_bytes_.load(std::memory_order_relaxed),
                          {}};
  for (const auto& waited : context_.waited_ns) stats.waited_ns.push_back(waited.load(std::memory_order_relaxed));
  return stats;
}

void Communicator::check_usable() const {
  DCOMM_CHECK(!in_child(), ErrorCode::kForked,
              "this communicator belongs to the parent process; a forked child must not use it. Start data-loader "
              "workers with the spawn method, or call dcomm.init() in the child");
  if (DCOMM_UNLIKELY(broken_.load(std::memory_order_acquire))) {
    throw_error(broken_code_, broken_message_);
  }
  DCOMM_CHECK(!closed(), ErrorCode::kAborted, "this communicator is closed; make a new one with dcomm.init()");
}

/// What holds wherever the arrays are; of an all-reduce the algorithm is still open.
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
  DCOMM_CHECK(call.wire == call.dtype || (call.dtype == DType::kF32 && is_half(call.wire)), ErrorCode::kInvalidArgument,
              "wire_dtype=", dtype_name(call.wire), " with a ", dtype_name(call.dtype),
              " array: only float32 arrays can travel as float16 or bfloat16; pass wire_dtype=None");
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
  if (call.collective != Collective::kAllReduce) return;
  if (DCOMM_UNLIKELY(!regions_.empty())) regions_.look_up(call);
  const bool is_shared = can_go_direct(call);
  check_direct(call, is_shared);
  call.algo = select_algo(settings_, call.algo, call.count * dtype_bytes(call.wire), is_shared);
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
      abort();
      while (!work->wait_for(std::chrono::milliseconds(50))) {
      }  // the progress thread uses the caller's arrays until the operation has ended, which abort() hastens
      throw Error(ErrorCode::kInterrupted, "interrupted");
    }
  }
  if (work->error_code() != ErrorCode::kOk) throw Error(work->error_code(), work->error_message());
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
  auto work = std::make_shared<Work>(call, timeout_ns);
  if (can_announce(call)) {
    announce(call);
    if (all_peers_enter()) {
      try {
        execute(call, timeout_ns, interrupted, false);
        work->finish(ErrorCode::kOk, "");
      } catch (const Error& error) {
        if (error.code() == ErrorCode::kInterrupted) throw;
        work->finish(error.code(), error.what());
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

/// Whether the next operation is this one alone, and small.
bool Communicator::can_announce(const CollectiveCall& call) const {
  return patience_ns_ > 0 && world_size() > 1 && test_delay_ns_ == 0 && !is_message(call.collective) &&
         call.lengths == nullptr && call.algo != Algo::kDirect && array_bytes(call, world_size()) <= kMaxPatientBytes &&
         queue_.is_empty();
}

/// Whether the peers are seen to enter the announced operation before the patience is over.
bool Communicator::all_peers_enter() const {
  const auto end = std::chrono::steady_clock::now() + std::chrono::nanoseconds(patience_ns_);
  for (int peer = 0; peer < world_size(); ++peer) {
    uint64_t& theirs = context_.control(peer).header.seq;
    while (std::atomic_ref<uint64_t>(theirs).load(std::memory_order_acquire) < current_.seq) {
      if (settings_.oversubscribed || std::chrono::steady_clock::now() >= end) return false;
    }
  }
  return true;
}

CudaThreadGroup& Communicator::cuda_group() const {
  DCOMM_CHECK(cuda_group_ != nullptr, ErrorCode::kInternal, "a communicator of processes has no group of threads");
  return *cuda_group_;
}

/// Of arrays of a GPU, where launch/cuda_plan.h makes what "auto" leaves open. Threads reach all memory: there the
/// results may lie anywhere.
void Communicator::choose_cuda_algo(CollectiveCall& call) {
  if (call.collective != Collective::kAllReduce) return;
  if (!regions_.empty()) regions_.look_up(call);
  const bool is_shared = call.shared_in.windows != nullptr && has_cuda_direct(call.dtype, call.op);
  DCOMM_CHECK(call.algo != Algo::kDirect || call.shared_in.windows == nullptr || is_shared, ErrorCode::kInvalidArgument,
              "algo='direct' with a CUDA array of ", dtype_name(call.dtype), " and op='", reduce_op_name(call.op),
              "': on CUDA it is for float32, float16 and bfloat16, sum and avg; use algo='auto'");
  check_direct(call, is_shared);
  if (call.algo == Algo::kAuto) call.algo = forced_cuda_algo(settings_, call.dtype);
  const bool pulled = call.shared_out.windows == nullptr && serves_cuda_between_processes();
  const size_t nbytes = call.count * dtype_bytes(call.dtype);
  const bool pays = is_shared && cuda_direct_pays(nbytes, world_size(), pulled);
  if (call.algo == Algo::kAuto && pays) call.algo = Algo::kDirect;
  if (call.algo == Algo::kDirect && !is_shared) call.algo = Algo::kAuto;  // DCOMM_ALGO, or no elements
  if (call.algo != Algo::kDirect) call.shared_in = call.shared_out = {};
}

void Communicator::check_cuda_device(int device) const {
  const int met = cuda_device();
  DCOMM_CHECK(met < 0 || met == device, ErrorCode::kInvalidArgument, "got cuda:", device,
              ", but this communicator uses cuda:", met, "; make another communicator for another GPU");
}

void Communicator::run_cuda(CudaRankCall call, bool collected) {
  const Entry entry(entered_);
  check_usable();
  complete_call(call.call);
  choose_cuda_algo(call.call);
  if (call.timeout_ns <= 0) call.timeout_ns = settings_.timeout_ns;
  if (serves_cuda_between_processes()) {
    run_cuda_between_processes(call);
  } else if (collected) {
    cuda_group().collect(rank(), call);
  } else {
    cuda_group().run(rank(), call);
  }
}

void Communicator::end_collecting_cuda(bool complain) {
  if (!serves_cuda_between_processes()) cuda_group().end_collecting(complain);
}

void Communicator::open_cuda(int device) {
  const Entry entry(entered_);
  check_usable();
  if (serves_cuda_between_processes()) {
    open_cuda_processes(device, 0, nullptr);
  } else {
    cuda_group().open(device);
  }
}

int Communicator::cuda_device() const {
  if (cuda_group_ != nullptr) return cuda_group_->device();
  const auto group = cuda_processes();
  return group == nullptr ? -1 : group->device();
}

void Communicator::synchronize_cuda(int64_t timeout_ns) {
  const Entry entry(entered_);
  check_usable();
  const int64_t limit_ns = timeout_ns > 0 ? timeout_ns : settings_.timeout_ns;
  if (!serves_cuda_between_processes()) return cuda_group().synchronize_check(rank(), limit_ns);
  synchronize_cuda_processes(limit_ns);
}

void Communicator::wait_cuda(const CudaWork& work, int64_t timeout_ns, InterruptCheck interrupted) {
  constexpr auto kSpin = std::chrono::microseconds(50);
  constexpr auto kBetweenChecks = std::chrono::milliseconds(50);
  work.check_started();
  const auto limit = std::chrono::nanoseconds(timeout_ns > 0 ? timeout_ns : work.timeout_ns() + kCudaWorkExtraNs);
  const auto start = Clock::now();
  auto next_check = start + kBetweenChecks;
  for (;;) {
    const DcommCudaEventState state = work.state();
    DCOMM_CHECK(state != kDcommCudaEventCaptured, ErrorCode::kInvalidArgument,
                "the operation is part of a CUDA graph, each launch of which has an end of its own; wait for the "
                "stream that launched it");
    if (state == kDcommCudaEventOver) return check_cuda_reports();
    const auto now = Clock::now();
    DCOMM_CHECK(now - start < limit, ErrorCode::kTimeout, "the operation is still running on the GPU, or waits there ",
                "for what its stream was given before, after ", 1e-9 * static_cast<double>(limit.count()),
                " s; wait again, or abort the communicator");
    if (now >= next_check) {
      next_check = now + kBetweenChecks;
      if (interrupted != nullptr && interrupted(nullptr)) {
        abort();
        throw Error(ErrorCode::kInterrupted, "interrupted");
      }
    }
    if (now - start > kSpin) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void Communicator::begin_call(const CollectiveCall& call) {
  if (DCOMM_UNLIKELY(test_delay_ns_ > 0)) std::this_thread::sleep_for(std::chrono::nanoseconds(test_delay_ns_));
  num_operations_.store(num_operations_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  num_bytes_.store(num_bytes_.load(std::memory_order_relaxed) + array_bytes(call, world_size()),
                   std::memory_order_relaxed);
}

void Communicator::count_sent(uint64_t sent_bytes) {
  num_sent_bytes_.store(num_sent_bytes_.load(std::memory_order_relaxed) + sent_bytes, std::memory_order_relaxed);
}

/// A collective.
void Communicator::execute(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted,
                           bool background) {
  begin_call(call);
  if (world_size() == 1) {
    const FloatEnvironment environment;
    return run_alone(in_components(call), *kernel_table_);
  }
  if (call.lengths != nullptr) check_lengths(call, timeout_ns, interrupted, background);
  if (call.algo == Algo::kDirect) {
    const Range reach = reach_of(call);
    if (reach.count != call.count) return execute_in_parts(call, reach, timeout_ns, interrupted, background);
  }
  execute_one(call, timeout_ns, interrupted, background);
}

/// An all-reduce of arrays that are reached in part.
void Communicator::execute_in_parts(const CollectiveCall& call, Range reach, int64_t timeout_ns,
                                    InterruptCheck interrupted, bool background) {
  ReachedInPart parts(call, reach);
  parts.ordinary.algo = select_algo(settings_, Algo::kAuto, parts.ordinary.count * dtype_bytes(call.dtype));
  execute_one(parts.ordinary, timeout_ns, interrupted, background);
  parts.copy_out();
  execute_one(parts.direct, timeout_ns, interrupted, background);
}

/// Numbers the operation and tells the peers that this rank enters it.
void Communicator::announce(const CollectiveCall& call) {
  current_ = OpRecord{};
  current_.seq = ++seq_;
  current_.count = call.lengths != nullptr ? 0 : call.count;  // different lengths: checked by check_lengths
  current_.collective = call.collective;
  current_.algo = call.algo;
  current_.dtype = call.dtype;
  current_.wire = call.wire;
  current_.op = call.op;
  current_.root = has_root(call.collective) ? call.root : -1;
  if (call.algo == Algo::kDirect) {
    current_.in_region = call.shared_in.region;
    current_.in_offset = call.shared_in.offset;
    current_.out_region = call.shared_out.region;
    current_.out_offset = call.shared_out.offset;
  }

  // With the history in it: a rank that could finish a broadcast without hearing from all notices in its next
  // operation that somebody called something else.
  history_ = hash_mix(history_, fingerprint(current_)) | 1;  // 0 means "nothing published yet"
  store_record(context_.control(rank()).records[current_.seq % 2], current_);
  begin_operation(context_, current_.seq, history_);
  announced_ = true;
}

void Communicator::execute_one(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted,
                               bool background) {
  if (!announced_) announce(call);
  announced_ = false;
  HostOp op;
  op.seq = current_.seq;
  op.hash = history_;
  prepare(op, timeout_ns, interrupted, background);

  bool finished = false;
  uint64_t sent_bytes = 0;
  {
    const FloatEnvironment environment;
    if (DCOMM_UNLIKELY(is_complex(call.dtype))) {
      finished = run_single_lane(context_, op, in_components(call), *kernel_table_, scratch_, &sent_bytes);
    } else {
      finished = run_single_lane(context_, op, call, *kernel_table_, scratch_, &sent_bytes);
    }
  }
  count_sent(sent_bytes);
  if (DCOMM_UNLIKELY(!finished)) break_down(current_, op.failure);
  std::atomic_ref<uint64_t>(context_.control(rank()).header.completed).store(op.seq, std::memory_order_release);
}

void Communicator::prepare(HostOp& op, int64_t timeout_ns, InterruptCheck interrupted, bool background) {
  op.policy = settings_.wait_policy(background);
  op.timeout_ns = timeout_ns > 0 ? timeout_ns : settings_.timeout_ns;
  op.warn_ns = settings_.warn_ns;
  op.interrupted = interrupted;
  op.stalled = &Communicator::warn_stalled;
  op.argument = this;
}

/// Every rank tells every other how much it will send, so that a disagreement has both numbers to show.
void Communicator::check_lengths(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted,
                                 bool background) {
  const auto n = static_cast<size_t>(world_size());
  const std::vector<int64_t> promised(call.lengths->send.begin(), call.lengths->send.end());
  std::vector<int64_t> coming(n);
  CollectiveCall lengths;
  lengths.collective = Collective::kAllToAll;
  lengths.dtype = lengths.wire = DType::kI64;
  lengths.in = promised.data();
  lengths.out = coming.data();
  lengths.count = 1;
  execute_one(lengths, timeout_ns, interrupted, background);
  for (size_t peer = 0; peer < n; ++peer) {
    if (coming[peer] == static_cast<int64_t>(call.lengths->recv[peer])) continue;
    Failure failure;
    failure.code = ErrorCode::kMismatch;
    failure.culprit = static_cast<int>(peer);
    failure.reporter = rank();
    std::ostringstream text;
    text << "all_to_all: rank " << peer << " sends " << coming[peer] << " elements to rank " << rank()
         << ", which expects " << call.lengths->recv[peer] << ": send_counts[" << rank() << "] on rank " << peer
         << " must equal recv_counts[" << peer << "] on rank " << rank()
         << "; compare them and start a new communicator";
    fail_with(current_, failure, text.str());
  }
}

void Communicator::set_broken(ErrorCode code, const std::string& message) {
  std::lock_guard lock(broken_mutex_);
  if (broken_.load(std::memory_order_relaxed)) return;
  broken_code_ = code;
  broken_message_ = message;
  broken_.store(true, std::memory_order_release);
}

void Communicator::break_down(const OpRecord& record, Failure failure) {
  // In a ring everybody waits for a neighbour, who may wait as well: name the rank that holds all of them up.
  if (failure.code == ErrorCode::kTimeout && failure.reporter == rank())
    failure.culprit = rank_behind(context_, failure.culprit);
  fail_with(record, failure, "");
}

/// Tells the peers, breaks this communicator and throws. text: empty for the usual one.
void Communicator::fail_with(const OpRecord& record, const Failure& failure, const std::string& text) {
  AbortReason reason;
  reason.code = failure.code;
  reason.reporter = static_cast<uint16_t>(failure.reporter);
  reason.culprit = static_cast<uint16_t>(failure.culprit);
  reason.detail = static_cast<uint8_t>(failure.detail);
  reason.seq = static_cast<uint32_t>(record.seq);
  if (failure.code == ErrorCode::kInterrupted) reason.code = ErrorCode::kPeerLost;  // what the peers lose is us
  broadcast_abort(context_, reason);

  std::string message = text;
  if (failure.code == ErrorCode::kInterrupted) {
    message = "the communicator was aborted by an interrupt (KeyboardInterrupt) on this rank; start a new one";
    set_broken(ErrorCode::kAborted, message);
  } else {
    if (message.empty()) message = describe_failure(context_, record, failure, pids_);
    set_broken(failure.code, message);
  }
  stop_cuda(broken_code_, message);
  throw Error(failure.code, message);
}

void Communicator::warn_stalled(void* argument, int peer, int64_t waited_ns) {
  const auto* self = static_cast<const Communicator*>(argument);
  std::fprintf(stderr, "dcomm: rank %d has waited %.0f s in %s for rank %d; positions: %s\n", self->rank(),
               1e-9 * static_cast<double>(waited_ns), operation_text(self->current_).c_str(), peer,
               describe_positions(self->context_).c_str());
}

void Communicator::abort() {
  if (in_child() || closed()) return;
  AbortReason reason;
  reason.code = ErrorCode::kAborted;
  reason.reporter = static_cast<uint16_t>(rank());
  reason.culprit = static_cast<uint16_t>(rank());
  broadcast_abort(context_, reason);
  const std::string text = "this communicator was aborted on rank " + std::to_string(rank()) + "; start a new one";
  if (cuda_group_ != nullptr) cuda_group_->stop(text);
  stop_cuda(ErrorCode::kAborted, text);
  if (cuda_processes() != nullptr) mesh_->tell_stop(id_);
  set_broken(ErrorCode::kAborted, text);
}

void Communicator::close() { leave(true); }

void Communicator::leave(bool finish_queue) {
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
  queue_.stop();
  leave_cuda();
  if (mesh_ != nullptr) return mesh_->leave(id_);  // says goodbye
  if (cuda_group_ != nullptr) cuda_group_->leave(rank());
  context_.exits->set(rank(), AbortDetail::kLeft);
  for (int peer = 0; peer < world_size(); ++peer) {
    raise_attention(context_, peer);
    wake_sleepers(context_, peer);
  }
}

}  // namespace dcomm
