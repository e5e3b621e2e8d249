#include "launch/cuda_call_queues.h"

#include <algorithm>
#include <iterator>
#include <sstream>
#include <utility>

namespace dcomm {

std::string describe(const CudaRankCall& rank_call) {
  const CollectiveCall& call = rank_call.call;
  std::ostringstream text;
  text << collective_name(call.collective) << '(' << call.count << " x " << dtype_name(call.dtype);
  if (call.wire != call.dtype) text << " on a " << dtype_name(call.wire) << " wire";
  if (reduces(call.collective)) text << ", " << reduce_op_name(call.op);
  if (call.collective == Collective::kAllReduce) text << ", " << algo_name(call.algo);
  if (call.shared_in.region != 0) {
    text << ", x=shared array " << call.shared_in.region;
    if (call.shared_in.offset != 0) text << " from byte " << call.shared_in.offset << " on";
  }
  if (has_root(call.collective)) text << ", rank " << call.root;
  if (call.tag != 0) text << ", tag " << call.tag;
  text << ')';
  if (is_message(call.collective)) {
    text << (call.collective == Collective::kSend ? " to" : " from") << " rank " << call.root;
  }
  text << " on cuda:" << rank_call.device;
  return text.str();
}

std::string list_ranks(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  return text;
}

namespace {

bool is_message_call(const CudaPendingCall& pending) { return is_message(pending.call.call.collective); }

}  // namespace

bool CudaCallQueues::is_empty() const {
  return std::all_of(queues_.begin(), queues_.end(), [](const Queue& queue) { return queue.empty(); });
}

bool CudaCallQueues::is_blocked(int rank) const {
  const Queue& queue = queues_[static_cast<size_t>(rank)];
  return std::any_of(queue.begin(), queue.end(),
                     [](const Pending& pending) { return pending->manner == CudaCallManner::kWaits; });
}

void CudaCallQueues::push(Pending pending) {
  queues_[static_cast<size_t>(pending->rank)].push_back(std::move(pending));
}

void CudaCallQueues::remove(const Pending& pending) {
  Queue& queue = queues_[static_cast<size_t>(pending->rank)];
  queue.erase(std::remove(queue.begin(), queue.end(), pending), queue.end());
}

std::vector<CudaCallQueues::Pending> CudaCallQueues::take_all() {
  std::vector<Pending> all;
  for (Queue& queue : queues_) {
    all.insert(all.end(), queue.begin(), queue.end());
    queue.clear();
  }
  return all;
}

template <class Wanted>
std::vector<CudaCallQueues::Pending> CudaCallQueues::list(const Wanted& wanted) const {
  std::vector<Pending> found;
  for (const Queue& queue : queues_) std::copy_if(queue.begin(), queue.end(), std::back_inserter(found), wanted);
  return found;
}

std::vector<CudaCallQueues::Pending> CudaCallQueues::take_collected() {
  std::vector<Pending> collected =
      list([](const Pending& pending) { return pending->manner == CudaCallManner::kCollected; });
  for (const Pending& pending : collected) remove(pending);
  return collected;
}

std::vector<CudaCallQueues::Pending> CudaCallQueues::list_own() const {
  return list([](const Pending& pending) { return pending->manner != CudaCallManner::kCollected; });
}

CudaCallQueues::Pending CudaCallQueues::find(int rank, const CudaWork& work) const {
  const Queue& queue = queues_[static_cast<size_t>(rank)];
  const auto found =
      std::find_if(queue.begin(), queue.end(), [&](const Pending& each) { return each->call.work.get() == &work; });
  return found == queue.end() ? nullptr : *found;
}

std::vector<CudaCallQueues::Pending> CudaCallQueues::take_complete() {
  std::vector<Pending> parts = take_collective();
  return parts.empty() ? take_message() : parts;
}

std::vector<CudaCallQueues::Pending> CudaCallQueues::take_collective() {
  for (const Queue& queue : queues_) {
    if (queue.empty() || is_message_call(*queue.front())) return {};
  }
  std::vector<Pending> parts;
  for (Queue& queue : queues_) {
    parts.push_back(queue.front());
    queue.pop_front();
  }
  return parts;
}

/// Of those that no collective comes before; the end where there is none.
CudaCallQueues::Queue::iterator CudaCallQueues::find_message(Queue& queue, Collective collective, int peer, int tag) {
  for (auto it = queue.begin(); it != queue.end() && is_message_call(**it); ++it) {
    const CollectiveCall& call = (*it)->call.call;
    if (call.collective == collective && call.root == peer && call.tag == tag) return it;
  }
  return queue.end();
}

std::vector<CudaCallQueues::Pending> CudaCallQueues::take_message() {
  for (size_t source = 0; source < queues_.size(); ++source) {
    Queue& sends = queues_[source];
    for (auto it = sends.begin(); it != sends.end() && is_message_call(**it); ++it) {
      const CollectiveCall& call = (*it)->call.call;
      if (call.collective != Collective::kSend) continue;
      Queue& recvs = queues_[static_cast<size_t>(call.root)];
      const auto found = find_message(recvs, Collective::kRecv, static_cast<int>(source), call.tag);
      if (found == recvs.end()) continue;
      std::vector<Pending> parts = {*it, *found};
      for (const Pending& part : parts) remove(part);
      return parts;
    }
  }
  return {};
}

CudaCallQueues::Pending CudaCallQueues::find_dead_end(const CudaPendingCall& waiting) const {
  const bool for_all = !is_message_call(waiting);
  for (const Queue& queue : queues_) {
    for (const Pending& other : queue) {
      if (other->manner != CudaCallManner::kWaits || other->rank == waiting.rank) continue;
      if (!for_all && other->rank != waiting.call.call.root) continue;  // not who is waited for
      const bool waits_for_us = !is_message_call(*other) || other->call.call.root == waiting.rank;
      if (waits_for_us && !(for_all && !is_message_call(*other))) return other;
    }
  }
  return nullptr;
}

/// A collective's number among those of its rank that are queued says which one of another rank's it meets.
bool CudaCallQueues::has_come(int rank, const CudaPendingCall& waiting) const {
  const Queue& theirs = queues_[static_cast<size_t>(rank)];
  const CollectiveCall& call = waiting.call.call;
  if (is_message_call(waiting)) {
    const auto other = call.collective == Collective::kSend ? Collective::kRecv : Collective::kSend;
    return std::any_of(theirs.begin(), theirs.end(), [&](const Pending& each) {
      const CollectiveCall& found = each->call.call;
      return found.collective == other && found.root == waiting.rank && found.tag == call.tag;
    });
  }
  const auto is_collective = [](const Pending& each) { return !is_message_call(*each); };
  const Queue& ours = queues_[static_cast<size_t>(waiting.rank)];
  const auto here = std::find_if(ours.begin(), ours.end(), [&](const Pending& each) { return each.get() == &waiting; });
  return std::count_if(theirs.begin(), theirs.end(), is_collective) > std::count_if(ours.begin(), here, is_collective);
}

std::vector<int> CudaCallQueues::missing(const CudaPendingCall& waiting) const {
  if (is_message_call(waiting)) return {waiting.call.call.root};
  std::vector<int> missing;
  for (int rank = 0; rank < world_size(); ++rank) {
    if (!has_come(rank, waiting)) missing.push_back(rank);
  }
  return missing;
}

std::string CudaCallQueues::describe_all() const {
  std::string text;
  for (int rank = 0; rank < world_size(); ++rank) {
    const Queue& queue = queues_[static_cast<size_t>(rank)];
    text += (rank == 0 ? "rank " : ", rank ") + std::to_string(rank) + " called " +
            (queue.empty() ? "nothing more" : describe(queue.front()->call));
  }
  return text;
}

}  // namespace dcomm
