#include "comm/call_site.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "comm/window_text.h"

namespace dcomm {

namespace {

using Clock = std::chrono::steady_clock;

/// As long as a rank may need for its core and its interpreter on a busy machine; an error waits no longer for a
/// detail.
constexpr std::chrono::milliseconds kPatience{200};

std::atomic<CallSiteLookup> the_lookup{nullptr};
std::atomic<bool> records{false};

ControlPage& page(const HostContext& context, int rank) { return context.control(rank); }

/// Whether `rank` is in an operation and has not said yet where that was called.
bool is_silent(const HostContext& context, int rank) {
  Header& header = page(context, rank).header;
  const uint64_t seq = std::atomic_ref<uint64_t>(header.seq).load(std::memory_order_acquire);
  const bool is_done = std::atomic_ref<uint64_t>(header.completed).load(std::memory_order_acquire) == seq;
  return !is_done && context.exits->get(rank) == AbortDetail::kNone && !has_call_site(context, rank, seq);
}

}  // namespace

void set_call_site_lookup(CallSiteLookup lookup, bool record) {
  the_lookup.store(lookup, std::memory_order_relaxed);
  records.store(record, std::memory_order_relaxed);
}

std::string call_site() {
  const CallSiteLookup lookup = the_lookup.load(std::memory_order_relaxed);
  return lookup == nullptr ? "" : lookup();
}

std::string recorded_call_site() { return records.load(std::memory_order_relaxed) ? call_site() : ""; }

void store_call_site(const HostContext& context, uint64_t seq, const std::string& site) {
  store_text(page(context, context.rank).call_site, seq, site);
}

bool has_call_site(const HostContext& context, int rank, uint64_t seq) {
  return has_text(page(context, rank).call_site, seq);
}

std::string load_call_site(const HostContext& context, int rank, uint64_t seq) {
  return load_text(page(context, rank).call_site, seq);
}

void await_call_sites(const HostContext& context) {
  const Clock::time_point end = Clock::now() + kPatience;
  for (int rank = 0; rank < context.world_size; ++rank) {
    while (is_silent(context, rank) && Clock::now() < end) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

void store_parting_note(const HostContext& context, const std::string& note) {
  std::string line = note;
  std::replace(line.begin(), line.end(), '\n', ' ');
  store_text(page(context, context.rank).parting_note, 1, line);
}

std::string load_parting_note(const HostContext& context, int rank) {
  return load_text(page(context, rank).parting_note, 1);
}

}  // namespace dcomm
