#include "comm/cuda_notes.h"

#include <algorithm>
#include <atomic>
#include <sstream>

#include "comm/failure_text.h"
#include "protocol/fingerprint.h"

namespace dcomm {

namespace {

uint64_t load_acquire(const uint64_t& word) {
  return std::atomic_ref<uint64_t>(const_cast<uint64_t&>(word)).load(std::memory_order_acquire);
}
void store_release(uint64_t& word, uint64_t value) {
  std::atomic_ref<uint64_t>(word).store(value, std::memory_order_release);
}

/// Credits come from who receives.
bool waits_for_receiver(const DcommCudaFailure& failure) {
  return static_cast<Flow>(failure.flow) == Flow::kMessageCredit;
}

bool are_alike(const OpRecord& a, const OpRecord& b) {
  return a.count == b.count && a.dtype == b.dtype && a.tag == b.tag;
}

}  // namespace

void CudaNotes::note_launching(const OpRecord& record) {
  CudaPosition& own = context_.control(context_.rank).cuda;
  if (!is_message(record.collective)) {
    store_record(own.records[record.seq % kCudaRecords], record);
    return;
  }
  const uint64_t order = num_messages_ + 1;
  CudaMessageRecord& place = own.messages[order % kCudaMessages];
  store_release(place.order, 0);  // who reads half of it takes it for none
  store_record(place.call, record);
  store_release(place.order, order);
}

void CudaNotes::note_launched(const OpRecord& record) {
  if (!is_message(record.collective)) {
    store_release(context_.control(context_.rank).cuda.launched, record.seq);
    return;
  }
  ++num_messages_;
  Flag& counts = context_.flag(context_.rank, 0, kCudaMessageCounts, record.root);
  store_release(record.collective == Collective::kSend ? counts.value : counts.hash[0], record.seq);
}

uint64_t CudaNotes::position(int rank) const { return load_acquire(context_.control(rank).cuda.launched); }

CudaMessageCounts CudaNotes::messages(int rank, int peer) const {
  const Flag& counts = context_.flag(rank, 0, kCudaMessageCounts, peer);
  return {load_acquire(counts.value), load_acquire(counts.hash[0])};
}

/// What is left of them, in the order of the calls.
std::vector<CudaMessageRecord> CudaNotes::list_messages(int rank, Collective kind, int peer) const {
  std::vector<CudaMessageRecord> found;
  for (const CudaMessageRecord& place : context_.control(rank).cuda.messages) {
    CudaMessageRecord record;
    record.order = load_acquire(place.order);
    record.call = load_record(place.call);
    if (record.order == 0 || load_acquire(place.order) != record.order) continue;
    if (record.call.collective == kind && record.call.root == peer) found.push_back(record);
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.order < b.order; });
  return found;
}

std::optional<CudaMessageRecord> CudaNotes::find_message(int rank, Collective kind, int peer, uint64_t number) const {
  for (const CudaMessageRecord& record : list_messages(rank, kind, peer)) {
    if (record.call.seq == number) return record;
  }
  return std::nullopt;
}

std::string CudaNotes::describe_disagreement(const DcommCudaFailure& failure) const {
  if (static_cast<Flow>(failure.flow) == Flow::kMessage) return describe_different_messages(failure.peer, failure.rank);
  return describe_different_collectives(failure.rank, failure.peer, failure.seq);
}

/// The first of both that differs; number: of the operation in which their kernels found it, its low 16 bits.
std::string CudaNotes::describe_different_collectives(int a, int b, uint32_t number) const {
  const uint64_t last = std::min(position(a), position(b));
  for (uint64_t seq = last < kCudaRecords ? 1 : last - kCudaRecords + 1; seq <= last; ++seq) {
    const OpRecord of_a = load_record(context_.control(a).cuda.records[seq % kCudaRecords]);
    const OpRecord of_b = load_record(context_.control(b).cuda.records[seq % kCudaRecords]);
    if (of_a.seq != seq || of_b.seq != seq || fingerprint(of_a) == fingerprint(of_b)) continue;
    std::ostringstream text;
    text << "the ranks disagree about operation #" << seq << " on the GPU: rank " << a << " called " << call_text(of_a)
         << "; rank " << b << " called " << call_text(of_b)
         << "; make every rank issue the same collectives in the same order, with equal arguments";
    if ((seq & 0xffffu) != number) text << " (seen in a later operation)";
    return text.str();
  }
  return "";
}

std::string CudaNotes::describe_different_messages(int sender, int receiver) const {
  for (const CudaMessageRecord& recv : list_messages(receiver, Collective::kRecv, sender)) {
    const auto send = find_message(sender, Collective::kSend, receiver, recv.call.seq);
    if (!send || are_alike(send->call, recv.call)) continue;
    std::ostringstream text;
    text
        << "message #" << recv.call.seq << " from rank " << sender << " to rank " << receiver
        << " on the GPU is not what the receiver expects: rank " << sender << " called " << call_text(send->call)
        << "; rank " << receiver << " called " << call_text(recv.call)
        << "; both must name the same count, dtype and tag (on a GPU the messages of a pair arrive in the order of the "
           "calls, whatever their tags); start a new communicator";
    return text.str();
  }
  return "";
}

std::string CudaNotes::describe_stalled_message(const DcommCudaFailure& failure) const {
  const int waiting = failure.rank, other = failure.peer;
  const bool sends = waits_for_receiver(failure);
  const CudaMessageCounts ours = messages(waiting, other), theirs = messages(other, waiting);
  const uint64_t wanted = sends ? ours.sent : ours.received;
  const uint64_t met = sends ? theirs.received : theirs.sent;
  std::ostringstream text;
  text << "rank " << waiting << " has called " << (sends ? "send to" : "recv from") << " rank " << other
       << " on the GPU " << wanted << " times, which has called " << (sends ? "recv" : "send") << " for it " << met
       << " times";
  if (met < wanted) {
    const auto missing = find_message(waiting, sends ? Collective::kSend : Collective::kRecv, other, met + 1);
    if (missing) text << ", not for " << call_text(missing->call);
  }
  const bool both_send = ours.sent > theirs.received && theirs.sent > ours.received;
  const bool both_receive = ours.received > theirs.sent && theirs.received > ours.sent;
  const bool is_dead_end = met < wanted ? (sends ? both_send : both_receive) : is_dead_end_of(waiting, other, sends);
  if (is_dead_end) {
    text << "; both have called " << (sends ? "send before recv" : "recv before send")
         << ": a GPU runs them in this order, and a message that is larger than its slots waits for its recv; let one "
            "of "
            "two ranks receive first";
  } else if (met >= wanted) {
    text << "; it has not begun there: something that was launched before it still waits, or another program keeps the "
            "GPU busy";
  }
  return text.str();
}

/// The last messages of two ranks both ways: each has called send before recv, or each recv before send.
bool CudaNotes::is_dead_end_of(int a, int b, bool sends) const {
  const auto begins_so = [&](int rank, int peer) {
    const auto first = list_messages(rank, sends ? Collective::kSend : Collective::kRecv, peer);
    const auto second = list_messages(rank, sends ? Collective::kRecv : Collective::kSend, peer);
    return !first.empty() && !second.empty() && first.back().order < second.back().order;
  };
  return begins_so(a, b) && begins_so(b, a);
}

}  // namespace dcomm
