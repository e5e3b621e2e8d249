#include "launch/cuda_group.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>

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

std::string describe(const CudaRankCall& rank_call) {
  const CollectiveCall& call = rank_call.call;
  std::ostringstream text;
  text << collective_name(call.collective) << '(' << call.count << " x " << dtype_name(call.dtype);
  if (call.wire != call.dtype) text << " on a " << dtype_name(call.wire) << " wire";
  if (reduces(call.collective)) text << ", " << reduce_op_name(call.op);
  if (call.collective == Collective::kAllReduce) text << ", " << algo_name(call.algo);
  if (has_root(call.collective)) text << ", rank " << call.root;
  text << ") on cuda:" << rank_call.device;
  return text.str();
}

bool agree(const CudaRankCall& a, const CudaRankCall& b) {
  return a.device == b.device && a.call.collective == b.call.collective && a.call.algo == b.call.algo &&
         a.call.dtype == b.call.dtype && a.call.wire == b.call.wire && a.call.op == b.call.op &&
         a.call.count == b.call.count && a.call.root == b.call.root;
}

}  // namespace

CudaGroupOptions CudaGroupOptions::from_environment() {
  CudaGroupOptions options;
  options.num_channels = static_cast<int>(read_number("DCOMM_CUDA_CHANNELS", 1024));
  options.slot_bytes = read_number("DCOMM_CUDA_SLOT_BYTES", uint64_t{1} << 30);
  return options;
}

CudaThreadGroup::CudaThreadGroup(int world_size, const CudaGroupOptions& options, const DcommCudaTable* table)
    : options_(options), table_(table), ranks_(static_cast<size_t>(world_size)) {
  DCOMM_CHECK(world_size >= 1, ErrorCode::kInvalidArgument, "world_size is ", world_size, ", expected 1 or more");
}

CudaThreadGroup::~CudaThreadGroup() {
  if (group_ != nullptr) table_->group_destroy(group_);
}

const DcommCudaTable& CudaThreadGroup::table() {
  if (table_ == nullptr) table_ = &cuda_table();
  return *table_;
}

void CudaThreadGroup::run(int rank, const CudaRankCall& call) {
  std::unique_lock lock(mutex_);
  check_usable(rank);
  Rank& mine = ranks_[static_cast<size_t>(rank)];
  DCOMM_CHECK(!mine.waiting, ErrorCode::kConcurrentUse, "rank ", rank,
              " is already inside a collective; one thread at a time may use a communicator");
  mine.waiting = true;
  mine.call = call;
  ++num_waiting_;
  if (num_waiting_ == world_size()) {
    end_round(run_round());
  } else if (std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& other) { return other.left; })) {
    break_group(ErrorCode::kPeerLost, list_ranks([](const Rank& other) { return other.left; }) + " left before " +
                                          describe(call) + "; all ranks must make the same calls before one is closed");
  } else {
    wait_for_others(lock, rank, call);
  }
  if (mine.outcome.code != ErrorCode::kOk) throw Error(mine.outcome.code, mine.outcome.message);
}

/// Returns when the round has ended, or ends it.
void CudaThreadGroup::wait_for_others(std::unique_lock<std::mutex>& lock, int rank, const CudaRankCall& call) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto deadline = start + std::chrono::nanoseconds(call.timeout_ns);
  const uint64_t round = round_;
  const auto ended = [&] { return round_ != round; };
  for (;;) {
    const auto slice = std::min(deadline, Clock::now() + kInterruptCheck);
    if (round_ended_.wait_until(lock, slice, ended)) return;
    if (Clock::now() >= deadline) {
      std::ostringstream text;
      text << "rank " << rank << " waited " << static_cast<double>(call.timeout_ns) * 1e-9 << " s in " << describe(call)
           << " for " << list_ranks([](const Rank& other) { return !other.waiting; })
           << ", which did not call it; every rank's thread must make "
           << "the same calls";
      break_group(ErrorCode::kTimeout, text.str());
      return;
    }
    if (call.interrupted == nullptr) continue;
    lock.unlock();  // the check may take the interpreter's lock, which another rank may hold while it wants ours
    const bool interrupted = call.interrupted(call.argument);
    lock.lock();
    if (ended()) return;
    if (!interrupted) continue;
    break_group(ErrorCode::kAborted, "rank " + std::to_string(rank) + " was interrupted in " + describe(call));
    throw Error(ErrorCode::kInterrupted, "interrupted");
  }
}

void CudaThreadGroup::check_usable(int rank) {
  DCOMM_CHECK(rank >= 0 && rank < world_size(), ErrorCode::kInvalidArgument, "rank ", rank, " of ", world_size());
  if (broken_.code == ErrorCode::kOk && group_ != nullptr) {
    DcommCudaFailure failure{};
    table_->poll_error(group_, &failure);
    if (failure.code != 0) {
      const bool timed_out = failure.code == static_cast<int32_t>(ErrorCode::kTimeout);
      std::ostringstream text;
      text << "rank " << failure.rank << " gave up on the GPU, waiting for rank " << failure.peer << " (message "
           << failure.seq << " of flow " << failure.flow
           << "): " << (timed_out ? "the deadline passed; something else may keep the GPU busy" : "stopped by the host")
           << "; results of the operations since the last check are not valid, make a new communicator";
      break_group(timed_out ? ErrorCode::kTimeout : ErrorCode::kAborted, text.str());
    }
  }
  if (broken_.code != ErrorCode::kOk) throw Error(broken_.code, broken_.message);
}

CudaThreadGroup::Outcome CudaThreadGroup::run_round() {
  const Outcome disagreement = find_disagreement();
  if (disagreement.code != ErrorCode::kOk) return disagreement;
  try {
    launch(ranks_[0].call);
  } catch (const Error& error) {
    // Bad arguments were found before anything was enqueued; after anything else the state is unknown.
    if (error.code() != ErrorCode::kInvalidArgument) broken_ = {error.code(), error.what()};
    return {error.code(), error.what()};
  }
  return {};
}

/// Lets everybody go; the caller holds the lock.
void CudaThreadGroup::end_round(const Outcome& outcome) {
  for (Rank& rank : ranks_) {
    if (rank.waiting) rank.outcome = outcome;
    rank.waiting = false;
  }
  num_waiting_ = 0;
  ++round_;
  round_ended_.notify_all();
}

CudaThreadGroup::Outcome CudaThreadGroup::find_disagreement() const {
  const CudaRankCall& first = ranks_[0].call;
  for (size_t r = 1; r < ranks_.size(); ++r) {
    const CudaRankCall& other = ranks_[r].call;
    if (agree(first, other)) continue;
    const char* const remedy = first.device != other.device
                                   ? "; ranks that are threads of one process share one GPU so far"
                                   : "; all ranks must make the same calls in the same order";
    return {ErrorCode::kMismatch, "rank 0 called " + describe(first) + ", but rank " + std::to_string(r) + " called " +
                                      describe(other) + remedy};
  }
  return {};
}

/// All ranks have come and agree.
void CudaThreadGroup::launch(const CudaRankCall& first) {
  const CollectiveCall& call = first.call;
  DCOMM_CHECK(call.collective != Collective::kSend && call.collective != Collective::kRecv, ErrorCode::kInvalidArgument,
              "got ", collective_name(call.collective),
              " of a CUDA array, which is not available on CUDA so far; use a CPU array");
  DCOMM_CHECK(call.lengths == nullptr, ErrorCode::kInvalidArgument,
              "got an all_to_all of CUDA arrays with blocks of different lengths, which is not available on CUDA so "
              "far; use blocks of one length or CPU arrays");
  DCOMM_CHECK(group_ == nullptr || device_ == first.device, ErrorCode::kInvalidArgument,
              "got an array on cuda:", first.device, ", but this communicator's ranks met on cuda:", device_,
              "; make another communicator for another GPU");
  char message[kMessageBytes] = "";
  if (group_ == nullptr) {
    const DcommCudaGroupOptions options{first.device, world_size(), options_.num_channels, 0, options_.slot_bytes};
    DcommCudaGroupInfo info{};
    check_cuda(table().group_create(&options, &group_, &info, message, sizeof(message)), message);
    device_ = first.device;
  }
  std::vector<const void*> in;
  std::vector<void*> out;
  std::vector<void*> streams;
  int64_t timeout_ns = 0;
  for (const Rank& rank : ranks_) {
    in.push_back(rank.call.call.in);
    out.push_back(rank.call.call.out);
    streams.push_back(rank.call.stream);
    timeout_ns = std::max(timeout_ns, rank.call.timeout_ns);
  }
  const DcommCudaCall job{static_cast<int32_t>(call.collective),
                          static_cast<int32_t>(call.algo),
                          static_cast<int32_t>(call.dtype),
                          static_cast<int32_t>(call.wire),
                          static_cast<int32_t>(call.op),
                          call.root,
                          call.count,
                          static_cast<uint64_t>(timeout_ns + kDeviceExtraNs),
                          in.data(),
                          out.data(),
                          streams.data()};
  check_cuda(table_->run(group_, &job, message, sizeof(message)), message);
}

/// Later calls raise this; so do the ranks that are waiting now. The caller holds the lock.
void CudaThreadGroup::break_group(ErrorCode code, const std::string& message) {
  if (broken_.code == ErrorCode::kOk) broken_ = {code, message};
  if (num_waiting_ != 0) end_round(broken_);
}

/// "rank 2" or "ranks 0, 3".
std::string CudaThreadGroup::list_ranks(bool (*wanted)(const Rank&)) const {
  std::string text;
  int num_listed = 0;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (!wanted(ranks_[r])) continue;
    text += (num_listed == 0 ? "" : ", ") + std::to_string(r);
    ++num_listed;
  }
  return (num_listed == 1 ? "rank " : "ranks ") + text;
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

void CudaThreadGroup::stop(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  break_group(ErrorCode::kAborted, reason);
  if (group_ != nullptr) table_->stop(group_);
}

void CudaThreadGroup::leave(int rank) {
  const std::lock_guard lock(mutex_);
  DCOMM_CHECK(rank >= 0 && rank < world_size(), ErrorCode::kInvalidArgument, "rank ", rank, " of ", world_size());
  ranks_[static_cast<size_t>(rank)].left = true;
  if (num_waiting_ != 0) {
    break_group(ErrorCode::kPeerLost, "rank " + std::to_string(rank) +
                                          " closed its communicator while others waited for it in a collective; all "
                                          "ranks must make the same calls before one is closed");
  }
}

}  // namespace dcomm
