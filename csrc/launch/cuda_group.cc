#include "launch/cuda_group.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>

#include "launch/cuda_failure_text.h"
#include "launch/cuda_loader.h"

namespace dcomm {

namespace {

constexpr auto kInterruptCheck = std::chrono::milliseconds(50);
constexpr int64_t kDeviceExtraNs = 1'000'000'000;  // so that the host's deadline, which says more, comes first
constexpr size_t kMessageBytes = 512;

uint64_t read_number(const char* name, uint64_t largest) {
  const char* const text = std::getenv(name);
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text, &end, 10);
  DCOMM_CHECK(errno == 0 && *end == '\0' && *text != '-' && value <= largest, ErrorCode::kInvalidArgument, name, "='",
              text, "': expected a whole number up to ", largest);
  return value;
}

bool agree(const CudaRankCall& a, const CudaRankCall& b) {
  if (is_message(a.call.collective)) {  // that they belong together is known
    return a.device == b.device && a.call.dtype == b.call.dtype && a.call.count == b.call.count;
  }
  return a.device == b.device && a.call.collective == b.call.collective && a.call.algo == b.call.algo &&
         a.call.dtype == b.call.dtype && a.call.wire == b.call.wire && a.call.op == b.call.op &&
         a.call.count == b.call.count && a.call.root == b.call.root &&
         a.call.shared_in.region == b.call.shared_in.region && a.call.shared_in.offset == b.call.shared_in.offset;
}

CudaOutcome find_disagreement(const std::vector<CudaCallQueues::Pending>& parts) {
  const CudaPendingCall& first = *parts[0];
  for (const CudaCallQueues::Pending& other : parts) {
    if (agree(first.call, other->call)) continue;
    const char* const remedy =
        first.call.device != other->call.device  ? "; ranks that are threads of one process share one GPU so far"
        : is_message(first.call.call.collective) ? "; both must name the same count and dtype"
                                                 : "; all ranks must make the same calls in the same order";
    return {ErrorCode::kMismatch, "rank " + std::to_string(first.rank) + " called " + describe(first.call) +
                                      ", but rank " + std::to_string(other->rank) + " called " + describe(other->call) +
                                      remedy};
  }
  return {};
}

}  // namespace

CudaGroupOptions CudaGroupOptions::from_environment() {
  CudaGroupOptions options;
  options.num_channels = static_cast<int>(read_number("DCOMM_CUDA_CHANNELS", 1024));
  options.max_channels = static_cast<int>(read_number("DCOMM_MAX_CTAS", 1024));
  options.slot_bytes = read_number("DCOMM_CUDA_SLOT_BYTES", uint64_t{1} << 30);
  return options;
}

CudaThreadGroup::CudaThreadGroup(int world_size, const CudaGroupOptions& options, const DcommCudaTable* table)
    : options_(options), table_(table), queues_(world_size), left_(static_cast<size_t>(world_size)) {
  DCOMM_CHECK(world_size >= 1, ErrorCode::kInvalidArgument, "world_size is ", world_size, ", expected 1 or more");
}

CudaThreadGroup::~CudaThreadGroup() {
  end(queues_.take_all(), {ErrorCode::kAborted, "the communicators were closed before all ranks had called"});
  if (group_ != nullptr) table_->group_destroy(group_);
}

const DcommCudaTable& CudaThreadGroup::table() {
  if (table_ == nullptr) table_ = &cuda_table();
  return *table_;
}

void CudaThreadGroup::open(int device) {
  const std::lock_guard lock(mutex_);
  open_locked(device);
}

int CudaThreadGroup::device() {
  const std::lock_guard lock(mutex_);
  return device_;
}

CudaThreadGroup::Pending CudaThreadGroup::queue(int rank, const CudaRankCall& call, CudaCallManner manner) {
  check_usable(rank);
  check_free(rank);
  auto mine = std::make_shared<CudaPendingCall>();
  mine->rank = rank;
  mine->call = call;
  mine->manner = manner;
  queues_.push(mine);
  return mine;
}

void CudaThreadGroup::run(int rank, const CudaRankCall& call) {
  std::unique_lock lock(mutex_);
  const Pending mine = queue(rank, call, CudaCallManner::kWaits);
  advance();
  if (!mine->done) refuse_lost_peers(mine);
  if (!mine->done) refuse_dead_end(mine);
  if (!mine->done) wait(lock, mine, {call.timeout_ns, true, call.interrupted, call.argument});
  if (mine->outcome.code != ErrorCode::kOk) throw mine->outcome.error();
}

void CudaThreadGroup::post(int rank, const CudaRankCall& call) {
  const std::lock_guard lock(mutex_);
  const Pending mine = queue(rank, call, CudaCallManner::kPosted);
  advance();  // a call that completes its operation needs no event: its stream is asked now
  if (!mine->done) refuse_lost_peers(mine);
  if (!mine->done) note_stream(mine);
  if (mine->outcome.code != ErrorCode::kOk) throw mine->outcome.error();
}

/// So that the operation, launched later, does not wait for what the stream is given after the call.
void CudaThreadGroup::note_stream(const Pending& mine) {
  try {
    if (group_ == nullptr) open_locked(mine->call.device);
    if (device_ != mine->call.device) return;  // refused when all have come
    auto event = events_->take();
    char message[kMessageBytes] = "";
    check_cuda(table_->event_record(event.get(), mine->call.stream, message, sizeof(message)), message);
    mine->ready = std::move(event);
  } catch (const Error& error) {
    queues_.remove(mine);
    if (error.code() != ErrorCode::kInvalidArgument) break_group({error.code(), error.what()});
    throw;
  }
}

void CudaThreadGroup::await(int rank, const CudaWork& work, const Patience& patience) {
  std::unique_lock lock(mutex_);
  const Pending mine = queues_.find(rank, work);
  if (mine == nullptr || mine->manner != CudaCallManner::kPosted) return;
  wait(lock, mine, patience);
}

bool CudaThreadGroup::withdraw(int rank, const CudaWork& work) {
  const std::lock_guard lock(mutex_);
  const Pending mine = queues_.find(rank, work);
  if (mine == nullptr || mine->manner != CudaCallManner::kPosted) return false;
  queues_.remove(mine);
  end({mine}, {ErrorCode::kAborted, describe(mine->call) + " was taken back by rank " + std::to_string(rank)});
  return true;
}

void CudaThreadGroup::collect(int rank, const CudaRankCall& call) {
  const std::lock_guard lock(mutex_);
  const Pending mine = queue(rank, call, CudaCallManner::kCollected);
  const Outcome outcome = advance();
  if (outcome.code != ErrorCode::kOk) throw outcome.error();
  if (!mine->done) refuse_lost_peers(mine);
  if (mine->outcome.code != ErrorCode::kOk) throw mine->outcome.error();
}

void CudaThreadGroup::end_collecting(bool complain) {
  const std::lock_guard lock(mutex_);
  const std::string text = queues_.describe_all();
  const std::vector<Pending> incomplete = queues_.take_collected();
  if (incomplete.empty()) return;
  for (const Pending& pending : incomplete) {
    if (pending->call.work == nullptr) continue;
    pending->call.work->give_up(
        {ErrorCode::kMismatch, describe(pending->call) + " was not started: its dcomm.group ended before all ranks' " +
                                   "calls were made: " + text});
  }
  end(incomplete, {});
  DCOMM_CHECK(!complain, ErrorCode::kMismatch,
              "a dcomm.group ended with calls that were not made for all ranks: ", text,
              "; nothing of them was started; make each call for every communicator of the group");
}

void CudaThreadGroup::check_free(int rank) const {
  DCOMM_CHECK(!queues_.is_blocked(rank), ErrorCode::kConcurrentUse, "rank ", rank,
              " is already inside a collective; one thread at a time may use a communicator");
}

std::vector<int> CudaThreadGroup::list_left() const {
  std::vector<int> ranks;
  for (size_t r = 0; r < left_.size(); ++r) {
    if (left_[r]) ranks.push_back(static_cast<int>(r));
  }
  return ranks;
}

/// A collective needs all; a message one rank, and its failure is that message's alone.
void CudaThreadGroup::refuse_lost_peers(const Pending& mine) {
  const CollectiveCall& call = mine->call.call;
  const std::string remedy = "; all ranks must make the same calls before one is closed";
  if (is_message(call.collective)) {
    if (!left_[static_cast<size_t>(call.root)] || queues_.has_come(call.root, *mine)) return;
    queues_.remove(mine);
    end({mine}, {ErrorCode::kPeerLost,
                 list_ranks({call.root}) + " left before its part of " + describe(mine->call) + remedy,
                 {{call.root}}});
    return;
  }
  std::vector<int> left = list_left();
  left.erase(std::remove_if(left.begin(), left.end(), [&](int rank) { return queues_.has_come(rank, *mine); }),
             left.end());
  if (left.empty()) return;
  break_group(
      {ErrorCode::kPeerLost, list_ranks(left) + " left before " + describe(mine->call) + remedy, named_ranks(left)});
}

void CudaThreadGroup::refuse_dead_end(const Pending& mine) {
  const Pending other = queues_.find_dead_end(*mine);
  if (other == nullptr) return;
  break_group({ErrorCode::kMismatch,
               "rank " + std::to_string(mine->rank) + " called " + describe(mine->call) + ", but rank " +
                   std::to_string(other->rank) + " called " + describe(other->call) +
                   ", and each waits for the other; calls of CUDA arrays return when the other rank has made its part: "
                   "let one of two ranks call recv first, or make the calls in a dcomm.group"});
}

/// Returns when `mine` is done.
void CudaThreadGroup::wait(std::unique_lock<std::mutex>& lock, const Pending& mine, const Patience& patience) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::nanoseconds(patience.timeout_ns);
  const auto ended = [&] { return mine->done; };
  for (;;) {
    const auto slice = std::min(deadline, Clock::now() + kInterruptCheck);
    if (call_ended_.wait_until(lock, slice, ended)) return;
    if (Clock::now() >= deadline) {
      const std::vector<int> missing = queues_.missing(*mine);
      std::ostringstream text;
      text << "rank " << mine->rank << " waited " << static_cast<double>(patience.timeout_ns) * 1e-9 << " s in "
           << describe(mine->call) << " for " << list_ranks(missing)
           << ", which did not call it; every rank's thread must make the same calls";
      if (!patience.is_final) {
        throw Error(ErrorCode::kTimeout, text.str() + "; it may still come: wait again", named_ranks(missing));
      }
      break_group({ErrorCode::kTimeout, text.str(), named_ranks(missing)});
      return;
    }
    if (patience.interrupted == nullptr) continue;
    lock.unlock();  // the check may take the interpreter's lock, which another rank may hold while it wants ours
    const bool interrupted = patience.interrupted(patience.argument);
    lock.lock();
    if (ended()) return;
    if (!interrupted) continue;
    break_group(
        {ErrorCode::kAborted, "rank " + std::to_string(mine->rank) + " was interrupted in " + describe(mine->call)});
    throw Error(ErrorCode::kInterrupted, "interrupted");
  }
}

void CudaThreadGroup::check_usable(int rank) {
  DCOMM_CHECK(rank >= 0 && rank < world_size(), ErrorCode::kInvalidArgument, "rank ", rank, " of ", world_size());
  if (broken_.code == ErrorCode::kOk && group_ != nullptr) {
    DcommCudaFailure failure{};
    table_->poll_error(group_, &failure);
    if (failure.code != 0) {
      break_group(describe_cuda_failure(failure));
    }
  }
  if (broken_.code != ErrorCode::kOk) throw broken_.error();
}

/// Starts every operation for which all have come; the first failure.
CudaThreadGroup::Outcome CudaThreadGroup::advance() {
  Outcome first;
  for (;;) {
    const std::vector<Pending> parts = queues_.take_complete();
    if (parts.empty()) return first;
    const Outcome outcome = start(parts);
    end(parts, outcome);
    if (first.code == ErrorCode::kOk) first = outcome;
  }
}

CudaThreadGroup::Outcome CudaThreadGroup::start(const std::vector<Pending>& parts) {
  // Whose call has returned, or belongs to a message, may not hear of it otherwise: they find the group broken.
  const bool concerns_later_calls =
      is_message(parts[0]->call.call.collective) || std::any_of(parts.begin(), parts.end(), [](const Pending& part) {
        return part->manner == CudaCallManner::kPosted;
      });
  Outcome disagreement = find_disagreement(parts);
  if (disagreement.code != ErrorCode::kOk) {
    if (concerns_later_calls) break_group(disagreement);
    return disagreement;
  }
  try {
    launch(parts);
  } catch (const Error& error) {
    // Bad arguments were found before anything was enqueued; after anything else the state is unknown.
    if (error.code() != ErrorCode::kInvalidArgument) broken_ = {error.code(), error.what()};
    if (concerns_later_calls) break_group({error.code(), error.what()});
    return {error.code(), error.what()};
  }
  return {};
}

/// Lets the waiting threads go.
void CudaThreadGroup::end(const std::vector<Pending>& parts, const Outcome& outcome) {
  for (const Pending& part : parts) {
    part->done = true;
    part->outcome = outcome;
    if (part->call.work != nullptr && outcome.code != ErrorCode::kOk) {
      part->call.work->give_up(outcome.error());
    }
  }
  call_ended_.notify_all();
}

void CudaThreadGroup::open_locked(int device) {
  if (broken_.code != ErrorCode::kOk) throw broken_.error();
  DCOMM_CHECK(group_ == nullptr || device_ == device, ErrorCode::kInvalidArgument, "got an array on cuda:", device,
              ", but this communicator's ranks met on cuda:", device_, "; make another communicator for another GPU");
  if (group_ != nullptr) return;
  const DcommCudaGroupOptions options{device, world_size(), options_.num_channels, options_.max_channels,
                                      options_.slot_bytes};
  DcommCudaGroupInfo info{};
  DcommCudaGroup* made = nullptr;
  char message[kMessageBytes] = "";
  check_cuda(table().group_create(&options, &made, &info, message, sizeof(message)), message);
  try {
    events_ = CudaEvents::create(table(), device);
  } catch (...) {
    table_->group_destroy(made);
    throw;
  }
  group_ = made;
  device_ = device;
}

/// All have come and agree.
void CudaThreadGroup::launch(const std::vector<Pending>& parts) {
  const CudaRankCall& first = parts[0]->call;
  const CollectiveCall& call = first.call;
  DCOMM_CHECK(call.lengths == nullptr, ErrorCode::kInvalidArgument,
              "got an all_to_all of CUDA arrays with blocks of different lengths, which is not available on CUDA so "
              "far; use blocks of one length or CPU arrays");
  open_locked(first.device);
  const auto num_ranks = static_cast<size_t>(world_size());
  std::vector<const void*> in(num_ranks);
  std::vector<void*> out(num_ranks);
  std::vector<void*> streams(num_ranks);
  std::vector<uint8_t> detached(num_ranks);
  std::vector<const DcommCudaEvent*> ready(num_ranks);
  int64_t timeout_ns = 0;
  for (const Pending& part : parts) {
    const auto rank = static_cast<size_t>(part->rank);
    in[rank] = part->call.call.in;
    out[rank] = part->call.call.out;
    streams[rank] = part->call.stream;
    detached[rank] = part->call.work != nullptr ? 1 : 0;
    ready[rank] = part->ready.get();
    timeout_ns = std::max(timeout_ns, part->call.timeout_ns);
  }
  const bool anyone_asks = std::find(detached.begin(), detached.end(), 1) != detached.end();
  const std::shared_ptr<DcommCudaEvent> over = anyone_asks ? events_->take() : nullptr;
  const bool message_only = is_message(call.collective);
  DcommCudaCall job{static_cast<int32_t>(call.collective),
                    static_cast<int32_t>(call.algo),
                    static_cast<int32_t>(call.dtype),
                    static_cast<int32_t>(call.wire),
                    static_cast<int32_t>(call.op),
                    message_only ? parts[0]->rank : call.root,
                    message_only ? parts[1]->rank : 0,
                    call.count,
                    static_cast<uint64_t>(timeout_ns + kDeviceExtraNs),
                    in.data(),
                    out.data(),
                    streams.data(),
                    0,
                    call.tag,
                    over.get(),
                    detached.data()};
  if (call.algo == Algo::kDirect) {
    job.all_in = in.data();
    job.all_out = out.data();
  }
  job.ready = ready.data();
  char message[kMessageBytes] = "";
  check_cuda(table_->run(group_, &job, message, sizeof(message)), message);
  for (const Pending& part : parts) {
    if (part->call.work != nullptr) part->call.work->start(*table_, over);
  }
}

/// Later calls raise this; so do the ranks that are waiting now. The caller holds the lock.
void CudaThreadGroup::break_group(const Outcome& outcome) {
  if (broken_.code == ErrorCode::kOk) broken_ = outcome;
  end(queues_.take_all(), broken_);
}

void CudaThreadGroup::synchronize_check(int rank, int64_t timeout_ns) {
  DcommCudaGroup* group = nullptr;
  {
    const std::lock_guard lock(mutex_);
    check_usable(rank);
    group = group_;
  }
  if (group == nullptr) return;  // nothing has been launched
  char message[kMessageBytes] = "";
  const auto limit = static_cast<uint64_t>(timeout_ns);
  check_cuda(table_->synchronize(group, limit, message, sizeof(message)), message);
  const std::lock_guard lock(mutex_);
  check_usable(rank);
}

void CudaThreadGroup::check_reports(int rank) {
  const std::lock_guard lock(mutex_);
  check_usable(rank);
}

void CudaThreadGroup::stop(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  break_group({ErrorCode::kAborted, reason});
  if (group_ != nullptr) table_->stop(group_);
}

void CudaThreadGroup::leave(int rank) {
  const std::lock_guard lock(mutex_);
  DCOMM_CHECK(rank >= 0 && rank < world_size(), ErrorCode::kInvalidArgument, "rank ", rank, " of ", world_size());
  left_[static_cast<size_t>(rank)] = true;
  for (const Pending& pending : queues_.list_own()) {
    if (!pending->done) refuse_lost_peers(pending);
  }
}

}  // namespace dcomm
