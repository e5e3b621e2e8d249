#include "comm/settings.h"

#include <sched.h>

#include <bit>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace dcomm {

namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kPacketBytes = 1024;  // 768 bytes of data: beyond that the copies cost more than a flag's line
constexpr uint64_t kDefaultWindowBytes = 8 * kKiB * kKiB;

double read_number(const char* name, double fallback, double least, double most) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  DCOMM_CHECK(end != text && *end == '\0' && value >= least && value <= most, ErrorCode::kInvalidArgument, name, "='",
              text, "': expected a number from ", least, " to ", most, "; unset it for the default");
  return value;
}

int num_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return CPU_COUNT(&set);
}

uint64_t clamp_slot(uint64_t bytes, uint64_t most) {
  const uint64_t slot = std::bit_floor(bytes);
  if (slot < 16 * kKiB) return 16 * kKiB;
  return slot < most ? slot : most;
}

/// what: where the name of `algo` stood.
void check_canonical(Algo algo, const char* what) {
  DCOMM_CHECK(
      algo == Algo::kAuto || is_canonical(algo), ErrorCode::kInvalidArgument, what, "='", algo_name(algo),
      "' on a deterministic communicator: its order of summation depends on where in the array an element "
      "lies; use 'auto', 'two_shot', 'one_shot' or 'direct', or make the communicator with deterministic=False");
}

}  // namespace

Settings Settings::from_environment(int world_size, bool deterministic) {
  Settings settings;
  settings.deterministic = deterministic;
  settings.oversubscribed = world_size > num_cpus();
  settings.algo_steps = steps_for(world_size, settings.oversubscribed);
  const char* algo = std::getenv("DCOMM_ALGO");
  if (algo != nullptr && *algo != '\0') settings.forced_algo = parse_algo(algo, "DCOMM_ALGO");
  if (deterministic) check_canonical(settings.forced_algo, "DCOMM_ALGO");
  settings.timeout_ns = static_cast<int64_t>(1e9 * read_number("DCOMM_TIMEOUT_S", 300, 0.001, 1e6));
  settings.warn_ns = static_cast<int64_t>(1e9 * read_number("DCOMM_WARN_S", 60, 0.001, 1e6));
  const double window = read_number("DCOMM_WINDOW_BYTES", static_cast<double>(kDefaultWindowBytes), 64 * kKiB, 1e12);
  // Small slots stay in L2 while both sides run; with fewer cores than ranks each slot costs a context
  // switch, so they are as large as the window allows.
  const uint64_t share = static_cast<uint64_t>(window) / (2 * static_cast<uint64_t>(world_size));
  settings.slot_bytes = clamp_slot(share, settings.oversubscribed ? 1024 * kKiB : 64 * kKiB);
  // The other pools together stay within another window's worth.
  const uint64_t side = share / 4;
  settings.exchange_slot_bytes = clamp_slot(side, settings.oversubscribed ? 256 * kKiB : 64 * kKiB);
  settings.side_slot_bytes = clamp_slot(side, 64 * kKiB);
  settings.packet_bytes = kPacketBytes;
  settings.first_number = static_cast<uint64_t>(read_number("DCOMM_TEST_FIRST_NUMBER", 0, 0, 1e15)) / 8 * 8;
  return settings;
}

WindowLayout Settings::layout(int world_size) const {
  WindowLayout layout;
  layout.placement = {PlacementKind::kBounce, world_size, depth};
  layout.num_channels = 1;
  const auto set = [&](SlotPool pool, uint64_t bytes) { layout.slot_bytes[static_cast<size_t>(pool)] = bytes; };
  set(SlotPool::kMain, slot_bytes);
  set(SlotPool::kExchange, exchange_slot_bytes);
  for (const SlotPool pool : {SlotPool::kFifo, SlotPool::kPair, SlotPool::kMessage}) set(pool, side_slot_bytes);
  layout.packet_bytes = packet_bytes;
  return layout;
}

WaitPolicy Settings::wait_policy(bool background) const {
  if (background) return {2'000, 20'000, false};
  if (oversubscribed) return {0, 100'000, false, true};
  return {100'000, 2'000'000, true};
}

Algo select_algo(const Settings& settings, Algo requested, uint64_t nbytes, bool is_shared) {
  if (settings.deterministic) check_canonical(requested, "algo");
  if (requested != Algo::kAuto) return requested;
  const Algo forced = settings.forced_algo;
  if (is_shared && forced == Algo::kDirect) return Algo::kDirect;
  if (forced != Algo::kAuto && forced != Algo::kDirect) return forced;
  const Algo measured = settings.algo_steps.choose(nbytes);
  if (measured == Algo::kOneShot) return measured;
  if (is_shared) return Algo::kDirect;  // as many steps as two_shot, and no copies
  return settings.deterministic && !is_canonical(measured) ? Algo::kTwoShot : measured;
}

Algo parse_algo(const char* name, const char* what) {
  for (const Algo algo : {Algo::kAuto, Algo::kRing, Algo::kTwoShot, Algo::kOneShot, Algo::kTree, Algo::kDirect}) {
    if (std::strcmp(name, algo_name(algo)) == 0) return algo;
  }
  throw_error(ErrorCode::kInvalidArgument, what, "='", name,
              "': expected 'auto', 'ring', 'two_shot', 'one_shot', 'tree' or 'direct'");
}

}  // namespace dcomm
