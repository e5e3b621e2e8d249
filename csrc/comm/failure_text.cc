#include "comm/failure_text.h"

#include <algorithm>
#include <atomic>
#include <iomanip>
#include <sstream>

#include "comm/call_site.h"
#include "comm/peer_activity.h"
#include "protocol/fingerprint.h"

namespace dcomm {

namespace {

/// Where the arrays of a direct operation lie.
std::string memory_text(const OpRecord& record) {
  std::ostringstream text;
  const auto place = [&](const char* name, uint32_t region, uint64_t offset) {
    if (region == 0) {
      text << ", " << name << "=memory that the others do not reach";
      return;
    }
    text << ", " << name << "=shared array " << region;
    if (offset != 0) text << " from byte " << offset << " on";
  };
  if (lends_input_only(record.collective)) {  // anywhere in the region
    place("x", record.in_region, 0);
    return text.str();
  }
  place("x", record.in_region, record.in_offset);
  if (record.out_region != record.in_region || record.out_offset != record.in_offset) {
    place("out", record.out_region, record.out_offset);
  }
  return text.str();
}

bool has_number(const OpRecord& record) { return !is_message(record.collective) && is_executed(record.collective); }

std::string number_text(const OpRecord& record) { return has_number(record) ? " #" + std::to_string(record.seq) : ""; }

uint64_t begun(const HostContext& context, int rank) {
  return std::atomic_ref<uint64_t>(context.control(rank).header.seq).load(std::memory_order_acquire);
}

uint64_t completed(const HostContext& context, int rank) {
  return std::atomic_ref<uint64_t>(context.control(rank).header.completed).load(std::memory_order_acquire);
}

std::string called_at(const HostContext& context, int rank, uint64_t seq) {
  const std::string site = load_call_site(context, rank, seq);
  return site.empty() ? "" : " at " + site;
}

/// 0 where the ranks are threads.
int pid_at(const std::vector<int>& pids, int rank) {
  const auto index = static_cast<size_t>(rank);
  return index < pids.size() ? pids[index] : 0;
}

std::string rank_text(int rank, int pid) {
  std::ostringstream text;
  text << "rank " << rank;
  if (pid > 0) text << " (pid " << pid << ')';
  return text.str();
}

NamedRank named(const HostContext& context, int rank, const std::vector<int>& pids) {
  return {rank, pid_at(pids, rank), static_cast<int64_t>(completed(context, rank))};
}

/// Operation `seq` of a rank, where its window still has it; else the one it began last.
OpRecord record_of(const HostContext& context, int rank, uint64_t seq) {
  const OpRecord record = load_record(context.control(rank).records[seq % 2]);
  return record.seq == seq ? record : load_record(context.control(rank).records[begun(context, rank) % 2]);
}

std::string disagreement(const HostContext& context, const Failure& failure) {
  if (failure.detail == AbortDetail::kMessage) {
    std::ostringstream message;
    message << "rank " << failure.reporter << " received a message of rank " << failure.culprit
            << " that it did not expect; its own error says which, start a new communicator";
    return message.str();
  }
  // One of the two may be an operation ahead, and the fingerprint that differs may be that of the one before.
  uint64_t seq = std::min(begun(context, failure.reporter), begun(context, failure.culprit));
  const auto same = [&] {
    const OpRecord a = record_of(context, failure.reporter, seq), b = record_of(context, failure.culprit, seq);
    return a.seq == b.seq && fingerprint(a) == fingerprint(b);
  };
  if (seq > 1 && same()) --seq;
  std::ostringstream text;
  text << "the ranks disagree about the operation:";
  for (const int rank : {failure.reporter, failure.culprit}) {
    const OpRecord record = record_of(context, rank, seq);
    text << " rank " << rank << " called " << call_text(record) << " as #" << record.seq
         << called_at(context, rank, record.seq) << ';';
  }
  if (same()) text << " an earlier call differed;";
  const OpRecord ours = record_of(context, failure.reporter, seq), theirs = record_of(context, failure.culprit, seq);
  if (ours.collective == theirs.collective && (ours.algo == Algo::kDirect || theirs.algo == Algo::kDirect)) {
    text
        << (lends_input_only(ours.collective)
                ? " with algo='direct' every rank reads the others' x where it lies, so all must pass that algo, and "
                  "parts of the same array of comm.empty;"
                : " an array of comm.empty or comm.register is reduced where it lies, so every rank must pass the same "
                  "part of the same one (or none of them such an array);");
  }
  text << " make every rank issue the same collectives in the same order, with equal arguments";
  return text.str();
}

}  // namespace

std::string call_text(const OpRecord& record) {
  std::ostringstream text;
  const bool is_any = record.collective == Collective::kRecv && record.root == kAnySource;
  text << collective_name(record.collective) << (is_any ? "_any(" : "(");
  if (record.collective == Collective::kBarrier || !is_executed(record.collective)) return text.str() + ")";
  text << "count=" << record.count << ", dtype=" << dtype_name(record.dtype);
  if (is_message(record.collective)) {
    const bool is_send = record.collective == Collective::kSend;
    if (!is_any) text << (is_send ? ", dst=" : ", src=") << record.root;
    text << ", tag=" << record.tag;
  }
  if (reduces(record.collective)) text << ", op=" << reduce_op_name(record.op);
  if (record.collective == Collective::kAllReduce) {
    text << ", wire_dtype=" << dtype_name(record.wire) << ", algo=" << algo_name(record.algo);
    if (record.algo == Algo::kDirect) text << memory_text(record);
  }
  if (lends_input_only(record.collective) && record.algo != Algo::kFlat) {
    text << ", algo=" << algo_name(record.algo);
    if (record.algo == Algo::kDirect) text << memory_text(record);
  }
  if (has_root(record.collective)) {
    const bool sends = record.collective == Collective::kBroadcast || record.collective == Collective::kScatter;
    text << (sends ? ", src=" : ", dst=") << record.root;
  }
  text << ')';
  return text.str();
}

const char* exit_text(AbortDetail how) {
  switch (how) {
    case AbortDetail::kLeft:
      return "closed its communicator";
    case AbortDetail::kInterrupted:
      return "was interrupted";
    case AbortDetail::kExits:
      return "exits without close()";
    default:
      return "died";
  }
}

std::string operation_text(const OpRecord& record) { return collective_name(record.collective) + number_text(record); }

std::string because(const HostContext& context, int rank) {
  const std::string note = load_parting_note(context, rank);
  return note.empty() ? "" : " (" + note + ")";
}

int rank_behind(const HostContext& context, int suspect) {
  for (int rank = 0; rank < context.world_size; ++rank) {
    if (begun(context, rank) < begun(context, suspect)) suspect = rank;
  }
  return suspect;
}

std::string describe_positions(const HostContext& context) {
  std::ostringstream text;
  for (int rank = 0; rank < context.world_size; ++rank) {
    const uint64_t seq = begun(context, rank);
    const AbortDetail exit = context.exits->get(rank);
    const bool is_in = completed(context, rank) != seq;
    text << (rank == 0 ? "" : ", ") << "rank " << rank << (exit == AbortDetail::kNone ? " " : " (gone) ")
         << (is_in ? "in #" : "finished #") << seq;
    if (!is_in) continue;
    const std::string site = called_at(context, rank, seq);
    if (!site.empty()) text << " called" << site;
  }
  return text.str();
}

NamedRanks ranks_of(const HostContext& context, const Failure& failure, const std::vector<int>& pids) {
  const bool names_one = failure.code == ErrorCode::kPeerLost || failure.code == ErrorCode::kTimeout;
  if (!names_one || failure.detail == AbortDetail::kFromAny) return {};
  return {named(context, failure.culprit, pids)};
}

NamedRanks other_deaths(const HostContext& context, const NamedRanks& known, const std::vector<int>& pids) {
  NamedRanks others;
  for (int rank = 0; rank < context.world_size; ++rank) {
    if (context.exits->get(rank) != AbortDetail::kDied) continue;
    const auto is_it = [rank](const NamedRank& one) { return one.rank == rank; };
    if (std::none_of(known.begin(), known.end(), is_it)) others.push_back(named(context, rank, pids));
  }
  return others;
}

std::string describe_other_deaths(const NamedRanks& others) {
  std::ostringstream text;
  for (const NamedRank& one : others) text << "; " << rank_text(one.rank, one.pid) << " died too";
  return text.str();
}

std::string describe_failure(const HostContext& context, const OpRecord& record, const Failure& failure,
                             const std::vector<int>& pids, const Listing& listing, const std::string& exit_status) {
  std::ostringstream text;
  text << call_text(record) << number_text(record) << " on rank " << context.rank << " of " << context.world_size;
  const std::string own_site = called_at(context, context.rank, record.seq);
  if (!own_site.empty()) text << ", called" << own_site;
  text << ": ";
  const double seconds = 1e-9 * static_cast<double>(failure.waited_ns);
  const std::string culprit = rank_text(failure.culprit, pid_at(pids, failure.culprit));
  switch (failure.code) {
    case ErrorCode::kPeerLost:
      text << culprit << ' ';
      if (failure.detail == AbortDetail::kExits && !exit_status.empty()) {
        text << exit_status << " without close()";
      } else {
        text << exit_text(failure.detail);
        if (failure.detail == AbortDetail::kDied && !exit_status.empty()) text << " (it " << exit_status << ')';
      }
      if (failure.detail == AbortDetail::kLeft || failure.detail == AbortDetail::kExits) {
        text << because(context, failure.culprit);
      }
      text << " after completing #" << completed(context, failure.culprit);
      if (failure.reporter != context.rank) text << " (seen by rank " << failure.reporter << ')';
      text << "; waited " << std::fixed << std::setprecision(3) << seconds
           << " s; look at that rank's own output for the first error, then start a new communicator";
      break;
    case ErrorCode::kTimeout:
      if (failure.detail == AbortDetail::kFromAny) {
        text << "no rank sent " << culprit << " the message that it waited for";
      } else if (failure.culprit == context.rank) {
        text << "rank " << failure.reporter
             << " waited for this rank until its timeout and gave up; positions: " << describe_positions(context)
             << listing.describe_others()
             << "; find out what kept this rank, or pass a longer timeout where it only needs more time";
        break;
      } else {
        text << "no answer from " << culprit << ", which is alive,";
      }
      text << " within " << std::fixed << std::setprecision(1) << seconds << " s";
      if (failure.reporter != context.rank) text << " (reported by rank " << failure.reporter << ')';
      if (failure.detail != AbortDetail::kFromAny) {
        const std::string activity = activity_of(pid_at(pids, failure.culprit));
        if (!activity.empty()) text << "; " << activity;
      }
      text << "; positions: " << describe_positions(context) << listing.describe_others()
           << "; find out what the rank behind is doing, or pass a longer timeout where it only needs more time";
      break;
    case ErrorCode::kMismatch:
      text << disagreement(context, failure);
      break;
    case ErrorCode::kInterrupted:
      text << "interrupted; the communicator is aborted, start a new one";
      break;
    default:
      text << culprit << " aborted the communicator" << because(context, failure.culprit) << "; start a new one";
  }
  return text.str();
}

}  // namespace dcomm
