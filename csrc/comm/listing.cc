#include "comm/listing.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>

#include "comm/call_site.h"
#include "comm/failure_text.h"
#include "comm/fork_guard.h"

namespace dcomm {

namespace {

struct List {
  const uint32_t generation = fork_generation();
  std::mutex mutex;
  std::map<const Listing*, Listing::Entry> entries;
};

/// Never destroyed: communicators may outlive what is static. A forked child has a list of its own: another thread of
/// its parent may have held the lock of the old one.
List& the_list() {
  static std::atomic<List*> current{new List};
  List* list = current.load(std::memory_order_acquire);
  if (list->generation == fork_generation()) return *list;
  auto fresh = std::make_unique<List>();
  return current.compare_exchange_strong(list, fresh.get(), std::memory_order_acq_rel) ? *fresh.release() : *list;
}

uint64_t load(uint64_t& word) { return std::atomic_ref<uint64_t>(word).load(std::memory_order_acquire); }

std::string name_text(const Listing::Entry& entry) {
  std::string text = "communicator of " + std::to_string(entry.root_ranks.size()) + " ranks";
  return entry.made_at.empty() ? text : text + " made at " + entry.made_at;
}

/// What the rank with number `root_rank` at the root does in `entry`; "": nothing, or it is no member.
std::string activity_text(const Listing::Entry& entry, int root_rank) {
  const auto found = std::find(entry.root_ranks.begin(), entry.root_ranks.end(), root_rank);
  if (found == entry.root_ranks.end()) return "";
  const int rank = static_cast<int>(found - entry.root_ranks.begin());
  ControlPage& page = entry.context->control(rank);
  const uint64_t seq = load(page.header.seq);
  if (load(page.header.completed) == seq || entry.context->exits->get(rank) != AbortDetail::kNone) return "";
  const OpRecord record = load_record(page.records[seq % 2]);
  std::ostringstream text;
  text << " is in " << call_text(record) << " #" << seq << " of the " << name_text(entry) << " as its rank " << rank;
  const std::string site = load_call_site(*entry.context, rank, seq);
  if (!site.empty()) text << ", called at " << site;
  return text.str();
}

}  // namespace

void Listing::enter(Entry entry) {
  const std::lock_guard lock(the_list().mutex);
  the_list().entries[this] = std::move(entry);
  is_entered_ = true;
}

void Listing::set_made_at(const std::string& site) {
  const std::lock_guard lock(the_list().mutex);
  if (is_entered_) the_list().entries[this].made_at = site;
}

void Listing::strike() {
  if (!is_entered_) return;
  const std::lock_guard lock(the_list().mutex);
  the_list().entries.erase(this);
  is_entered_ = false;
}

std::string Listing::describe_others() const {
  const std::lock_guard lock(the_list().mutex);
  if (!is_entered_) return "";
  const Entry& own = the_list().entries[this];
  std::ostringstream text;
  for (size_t rank = 0; rank < own.root_ranks.size(); ++rank) {
    std::set<const Windows*> seen = {own.context->windows.get()};  // where ranks are threads, each has an entry
    for (const auto& [listing, entry] : the_list().entries) {
      if (entry.relatives != own.relatives || !seen.insert(entry.context->windows.get()).second) continue;
      const std::string activity = activity_text(entry, own.root_ranks[rank]);
      if (!activity.empty()) text << "; rank " << rank << activity;
    }
  }
  if (text.str().empty()) return "";
  return "; this is the " + name_text(own) + text.str() +
         "; use several communicators in the same order on every rank that is in them";
}

}  // namespace dcomm
