#include "launch/cuda_process_group.h"

#include <algorithm>
#include <chrono>
#include <sstream>
#include <thread>

#include "launch/cuda_failure_text.h"
#include "launch/cuda_loader.h"
#include "protocol/fingerprint.h"

namespace dcomm {

namespace {

constexpr int64_t kDeviceExtraNs = 1'000'000'000;
constexpr size_t kMessageBytes = 512;
/// The GPU may tell that a rank has stopped before the watcher tells why.
constexpr auto kExitPatience = std::chrono::milliseconds(200);

bool says_more_than_exit(const CudaOutcome& reported) {
  return reported.code == ErrorCode::kMismatch || reported.code == ErrorCode::kTimeout;
}

/// Each rank's array, as this process maps it.
template <class Pointee>
std::vector<Pointee*> everywhere(const SharedArray& array) {
  std::vector<Pointee*> all;
  for (int rank = 0; rank < array.windows->world_size(); ++rank) all.push_back(array.windows->at(rank) + array.offset);
  return all;
}

OpRecord record_of(const CollectiveCall& call) {
  OpRecord record;
  record.count = call.count;
  record.collective = call.collective;
  record.algo = call.algo;
  record.dtype = call.dtype;
  record.wire = call.wire;
  record.op = call.op;
  record.root = has_root(call.collective) || is_message(call.collective) ? call.root : -1;
  record.tag = call.tag;
  record.in_region = call.shared_in.region;
  record.in_offset = call.shared_in.offset;
  record.out_region = call.shared_out.region;
  record.out_offset = call.shared_out.offset;
  return record;
}

bool is_of_message(const DcommCudaFailure& failure) {
  const auto flow = static_cast<Flow>(failure.flow);
  return flow == Flow::kMessage || flow == Flow::kMessageCredit;
}

}  // namespace

CudaProcessGroup::CudaProcessGroup(const DcommCudaTable& table, DcommCudaGroup* group,
                                   std::shared_ptr<CudaEvents> events, const CudaProcessOptions& options,
                                   CudaProcessPeers peers)
    : table_(table),
      group_(group),
      events_(std::move(events)),
      options_(options),
      peers_(std::move(peers)),
      exits_(peers_.pids.size()),
      sent_(exits_.size()),
      received_(exits_.size()) {}

CudaProcessGroup::~CudaProcessGroup() {
  if (group_ != nullptr) table_.group_destroy(group_);
}

void CudaProcessGroup::abandon() { group_ = nullptr; }

bool CudaProcessGroup::is_broken() const {
  const std::lock_guard lock(mutex_);
  return broken_.code != ErrorCode::kOk;
}

void CudaProcessGroup::break_group(const CudaOutcome& outcome) {
  const std::lock_guard lock(mutex_);
  if (broken_.code == ErrorCode::kOk) broken_ = outcome;
}

void CudaProcessGroup::break_group_by_exit(const CudaOutcome& outcome, bool in_order) {
  const std::lock_guard lock(mutex_);
  if (broken_.code != ErrorCode::kOk) return;
  broken_ = outcome;
  broken_by_exit_ = in_order;
}

/// What the kernels have reported so far; kOk: nothing.
CudaOutcome CudaProcessGroup::find_failure() {
  DcommCudaFailure failure{};
  table_.poll_error(group_, &failure);
  if (failure.code == 0) return {};
  CudaOutcome outcome = describe_cuda_failure(failure);
  if (outcome.code == ErrorCode::kMismatch) {
    const std::string both = peers_.disagreement(failure);
    if (!both.empty()) outcome.message = both;
  }
  if (outcome.code == ErrorCode::kTimeout) {
    if (is_of_message(failure)) outcome.message += "; " + peers_.stalled_message(failure);
    outcome.message += "; collectives launched so far: " + describe_positions();
  }
  return outcome;
}

/// What two ranks' own notes say of a disagreement, whether or not a kernel of this rank has seen it: of a collective,
/// this rank and another; of a message, any two.
CudaOutcome CudaProcessGroup::find_disagreement() const {
  const int num_ranks = static_cast<int>(exits_.size());
  const auto ask = [&](int rank, int peer, Flow flow) {
    DcommCudaFailure failure{};
    failure.flow = static_cast<int32_t>(flow);
    failure.rank = rank;
    failure.peer = peer;
    failure.seq = static_cast<uint32_t>(num_launched_.load() & 0xffffu);
    return peers_.disagreement(failure);
  };
  for (int rank = 0; rank < num_ranks; ++rank) {
    for (int peer = 0; peer < num_ranks; ++peer) {
      if (rank == peer) continue;
      std::string both = rank == options_.rank ? ask(rank, peer, Flow::kDirect) : "";
      if (both.empty()) both = ask(rank, peer, Flow::kMessage);
      if (!both.empty()) return {ErrorCode::kMismatch, both};
    }
  }
  return {};
}

/// A peer may have gone because of a failure that this rank's kernels find at their next look, or, if they were
/// through already, would find in the next operation.
void CudaProcessGroup::prefer_report() {
  {
    const std::lock_guard lock(mutex_);
    if (!broken_by_exit_) return;
  }
  const auto deadline = std::chrono::steady_clock::now() + kExitPatience;
  CudaOutcome reported = find_failure();
  if (!says_more_than_exit(reported)) reported = find_disagreement();
  while (reported.code == ErrorCode::kOk && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    reported = find_failure();
  }
  const std::lock_guard lock(mutex_);
  broken_by_exit_ = false;
  if (says_more_than_exit(reported)) broken_ = reported;
}

void CudaProcessGroup::check_usable() {
  prefer_report();
  {
    const std::lock_guard lock(mutex_);
    if (broken_.code != ErrorCode::kOk) throw broken_.error();
  }
  CudaOutcome outcome = find_failure();
  if (outcome.code == ErrorCode::kAborted) {  // some rank's host has stopped it: why?
    const auto deadline = std::chrono::steady_clock::now() + kExitPatience;
    while (find_exit() < 0 && !is_broken() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (find_exit() >= 0) outcome = describe_exit(find_exit());
  }
  if (outcome.code != ErrorCode::kOk) break_group(outcome);
  const std::lock_guard lock(mutex_);
  if (broken_.code != ErrorCode::kOk) throw broken_.error();
}

void CudaProcessGroup::check_call(const CudaRankCall& call) const {
  DCOMM_CHECK(call.call.lengths == nullptr, ErrorCode::kInvalidArgument,
              "got an all_to_all of CUDA arrays with blocks of different lengths, which is not available on CUDA so "
              "far; use blocks of one length or CPU arrays");
  DCOMM_CHECK(call.device == options_.device, ErrorCode::kInvalidArgument, "got an array on cuda:", call.device,
              ", but this communicator uses cuda:", options_.device,
              " on this rank; make another communicator for another GPU");
}

void CudaProcessGroup::run(const CudaRankCall& call) {
  check_usable();
  check_call(call);
  if (is_message(call.call.collective)) {
    run_message(call);
  } else {
    run_collective(call);
  }
}

void CudaProcessGroup::run_collective(const CudaRankCall& call) {
  OpRecord record = record_of(call.call);
  const uint64_t without_number = fingerprint(record);  // so that a call has the same one whenever it is made
  record.seq = num_launched_.load() + 1;
  num_launched_.store(record.seq);
  check_peers(call, 0, static_cast<int>(exits_.size()));
  launch(call, record, num_launched_, without_number);
}

/// No other rank knows of it, so that it takes no part in what ranks compare of their calls: the receiver's kernel
/// compares what the sender's has written before the data.
void CudaProcessGroup::run_message(const CudaRankCall& call) {
  const int peer = call.call.root;
  DCOMM_CHECK(peer >= 0 && peer < static_cast<int>(exits_.size()) && peer != options_.rank, ErrorCode::kInvalidArgument,
              collective_name(call.call.collective), " with rank ", peer, " on rank ", options_.rank, " of ",
              exits_.size(), ": expected another rank of the communicator");
  auto& number = (call.call.collective == Collective::kSend ? sent_ : received_)[static_cast<size_t>(peer)];
  OpRecord record = record_of(call.call);
  record.seq = number.load() + 1;
  number.store(record.seq);
  check_peers(call, peer, peer + 1);
  launch(call, record, number, 0);
}

/// Whether `peer` has launched its part of all that this rank has.
bool CudaProcessGroup::has_met(int peer) const {
  const CudaMessageCounts theirs = peers_.messages(peer);
  const auto index = static_cast<size_t>(peer);
  return peers_.position(peer) >= num_launched_.load() && theirs.received >= sent_[index].load() &&
         theirs.sent >= received_[index].load();
}

/// Whoever of [first, last) has left must have launched its part. note_exit does the same the other way round, so that
/// one of the two sees what the other has written.
void CudaProcessGroup::check_peers(const CudaRankCall& call, int first, int last) {
  for (int peer = first; peer < last; ++peer) {
    const uint8_t exit = exits_[static_cast<size_t>(peer)].load();
    if (exit == kThere || (exit == kLeft && has_met(peer))) continue;
    CudaOutcome outcome = describe_exit(peer);
    outcome.message = describe(call) + ": " + outcome.message;
    break_group_by_exit(outcome, exit == kLeft);
    check_usable();
  }
}

/// number: what has been counted up to record.seq.
void CudaProcessGroup::launch(const CudaRankCall& rank_call, const OpRecord& record, std::atomic<uint64_t>& number,
                              uint64_t fingerprint) {
  const CollectiveCall& call = rank_call.call;
  DcommCudaCall job{};
  job.collective = static_cast<int32_t>(call.collective);
  job.algo = static_cast<int32_t>(call.algo);
  job.dtype = static_cast<int32_t>(call.dtype);
  job.wire = static_cast<int32_t>(call.wire);
  job.op = static_cast<int32_t>(call.op);
  job.root = call.root;
  if (is_message(call.collective)) {
    const bool sends = call.collective == Collective::kSend;
    job.collective = static_cast<int32_t>(Collective::kSend);
    job.root = sends ? options_.rank : call.root;
    job.peer = sends ? call.root : options_.rank;
    job.tag = call.tag;
  }
  job.count = call.count;
  job.timeout_ns = static_cast<uint64_t>(std::max(rank_call.timeout_ns, options_.least_timeout_ns) + kDeviceExtraNs);
  job.in = &call.in;
  job.out = &call.out;
  job.streams = &rank_call.stream;
  job.fingerprint = fingerprint;
  const uint8_t detached = rank_call.work != nullptr ? 1 : 0;
  job.detached = &detached;
  std::shared_ptr<DcommCudaEvent> over;
  std::vector<const void*> all_in;
  std::vector<void*> all_out;
  if (call.algo == Algo::kDirect) {
    all_in = everywhere<const void>(call.shared_in);
    job.all_in = all_in.data();
    if (call.shared_out.windows != nullptr) {
      all_out = everywhere<void>(call.shared_out);
      job.all_out = all_out.data();
    }
  }
  char message[kMessageBytes] = "";
  peers_.launching(record);
  try {
    if (detached != 0) over = events_->take();
    job.end = over.get();
    check_cuda(table_.run(group_, &job, message, sizeof(message)), message);
  } catch (const Error& error) {
    number.store(record.seq - 1);
    // Bad arguments were found before anything was enqueued; after anything else the state is unknown.
    if (error.code() != ErrorCode::kInvalidArgument) stop({error.code(), error.what()});
    throw;
  }
  peers_.launched(record);
  if (rank_call.work != nullptr) rank_call.work->start(table_, std::move(over));
}

void CudaProcessGroup::synchronize_check(int64_t timeout_ns) {
  char message[kMessageBytes] = "";
  check_cuda(table_.synchronize(group_, static_cast<uint64_t>(timeout_ns), message, sizeof(message)), message);
  check_reports();
}

void CudaProcessGroup::check_reports() {
  DcommCudaFailure failure{};
  table_.poll_error(group_, &failure);
  if (failure.code != 0) check_usable();
}

void CudaProcessGroup::stop(const CudaOutcome& reason) {
  break_group(reason);
  if (group_ != nullptr) table_.stop(group_);
}

void CudaProcessGroup::note_exit(int peer, bool died) {
  exits_[static_cast<size_t>(peer)].store(died ? kDied : kLeft);
  if (!died && has_met(peer)) return;
  // It may have gone because of what the GPU has reported; that says more.
  const CudaOutcome reported = find_failure();
  if (says_more_than_exit(reported)) {
    stop(reported);
    return;
  }
  break_group_by_exit(describe_exit(peer), !died);
  if (group_ != nullptr) table_.stop(group_);
}

/// A rank that is gone, those that died first; -1: none.
int CudaProcessGroup::find_exit() const {
  for (const uint8_t how : {kDied, kLeft}) {
    for (size_t peer = 0; peer < exits_.size(); ++peer) {
      if (exits_[peer].load() == how) return static_cast<int>(peer);
    }
  }
  return -1;
}

CudaOutcome CudaProcessGroup::describe_exit(int peer) const {
  const auto index = static_cast<size_t>(peer);
  std::ostringstream text;
  text << "rank " << peer;
  if (peers_.pids[index] > 0) text << " (pid " << peers_.pids[index] << ')';
  text << (exits_[index].load() == kDied ? " died" : " closed its communicator")
       << "; launched on the GPU so far: " << describe_positions()
       << "; results of operations that were running are not valid; look at that rank's own output for the first "
          "error, then start a new communicator";
  return {ErrorCode::kPeerLost, text.str(), {{peer, peers_.pids[index]}}};
}

/// "#4 on this rank, #3 on rank 1".
std::string CudaProcessGroup::describe_positions() const {
  std::ostringstream text;
  text << '#' << num_launched_.load() << " on this rank";
  for (size_t rank = 0; rank < exits_.size(); ++rank) {
    if (static_cast<int>(rank) == options_.rank) continue;
    text << ", #" << peers_.position(static_cast<int>(rank)) << " on rank " << rank;
  }
  return text.str();
}

}  // namespace dcomm
