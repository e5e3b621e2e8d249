// Communicator: what ends all its operations, and what is said of it. Floor: comm.
#include <chrono>
#include <cstdio>
#include <string>

#include "comm/call_site.h"
#include "comm/communicator.h"
#include "comm/exit_status.h"
#include "comm/failure_text.h"

namespace dcomm {

namespace {

// How long the text waits for the status: of who is dead already, and of who has said that it exits, where an
// interpreter with large libraries has still to end.
constexpr std::chrono::milliseconds kDeathPatience{100};
constexpr std::chrono::milliseconds kExitPatience{500};

}  // namespace

void Communicator::set_broken(const Error& reason) {
  std::lock_guard lock(broken_mutex_);
  if (broken_.load(std::memory_order_relaxed)) return;
  broken_reason_ = reason;
  broken_.store(true, std::memory_order_release);
}

void Communicator::break_down(const OpRecord& record, Failure failure) {
  // In a ring everybody waits for a neighbour, who may wait as well: name the rank that holds all of them up.
  if (failure.code == ErrorCode::kTimeout && failure.reporter == rank())
    failure.culprit = rank_behind(context_, failure.culprit);
  fail_with(record, failure, "");
}

/// Of a lost process.
std::string Communicator::exit_status_of(const Failure& failure) const {
  const bool has_ended = failure.detail == AbortDetail::kDied || failure.detail == AbortDetail::kExits;
  if (mesh_ == nullptr || failure.code != ErrorCode::kPeerLost || !has_ended) return "";
  const Mesh::Peer& peer = mesh_->peer(mesh_ranks_[static_cast<size_t>(failure.culprit)]);
  return exit_status_text(peer.pid, peer.pidfd, failure.detail == AbortDetail::kExits ? kExitPatience : kDeathPatience);
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
  note_call_site(record.seq);

  std::string message = text;
  NamedRanks ranks;
  if (failure.code == ErrorCode::kInterrupted) {
    message = "the communicator was aborted by an interrupt (KeyboardInterrupt) on this rank; start a new one";
    set_broken({ErrorCode::kAborted, message});
  } else {
    if (message.empty()) {
      const bool names_others = failure.code == ErrorCode::kMismatch || failure.code == ErrorCode::kTimeout;
      if (names_others) await_call_sites(context_);
      message = describe_failure(context_, record, failure, pids_, listing_, exit_status_of(failure));
    }
    ranks = ranks_of(context_, failure, pids_);
    set_broken({failure.code, message, ranks});
    if (failure.code == ErrorCode::kPeerLost) add_other_deaths(message, ranks);
  }
  stop_cuda({broken_reason_.code(), message, ranks});
  throw Error(failure.code, message, ranks);
}

/// To the text of a lost rank and to the ranks that it names.
void Communicator::add_other_deaths(std::string& message, NamedRanks& ranks) const {
  const NamedRanks others = other_deaths(context_, ranks, pids_);
  message += describe_other_deaths(others);
  ranks.insert(ranks.end(), others.begin(), others.end());
}

/// Lets the peers know where the program called operation `seq`; they hear of the failure first, since this may wait
/// for the interpreter.
void Communicator::note_call_site(uint64_t seq) const {
  if (has_call_site(context_, rank(), seq)) return;
  const std::string site = call_site();
  store_call_site(context_, seq, site.empty() ? queued_site_ : site);
}

void Communicator::warn_stalled(void* argument, int peer, int64_t waited_ns) {
  const auto* self = static_cast<const Communicator*>(argument);
  std::fprintf(stderr, "dcomm: rank %d has waited %.0f s in %s for rank %d; positions: %s%s\n", self->rank(),
               1e-9 * static_cast<double>(waited_ns), operation_text(self->current_).c_str(), peer,
               describe_positions(self->context_).c_str(), self->listing_.describe_others().c_str());
}

void Communicator::leave_note(const std::string& reason) {
  if (!in_child() && !closed()) store_parting_note(context_, reason);
}

void Communicator::abort(const std::string& why) {
  if (in_child() || closed()) return;
  if (!why.empty()) store_parting_note(context_, why);
  AbortReason reason;
  reason.code = ErrorCode::kAborted;
  reason.reporter = static_cast<uint16_t>(rank());
  reason.culprit = static_cast<uint16_t>(rank());
  broadcast_abort(context_, reason);
  const std::string text = "this communicator was aborted on rank " + std::to_string(rank()) +
                           because(context_, rank()) + "; start a new one";
  if (cuda_group_ != nullptr) cuda_group_->stop(text);
  stop_cuda({ErrorCode::kAborted, text});
  if (cuda_processes() != nullptr) mesh_->tell_stop(id_);
  set_broken({ErrorCode::kAborted, text});
}

}  // namespace dcomm
