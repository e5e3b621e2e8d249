// What a test build does at a named place. Floor: base.
#include "base/failpoint.h"

#if defined(DCOMM_TESTING)

#include <unistd.h>
#include <csignal>
#include <ctime>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/mutation.h"

namespace dcomm {

namespace {

struct Armed {
  std::string name;  // empty: none
  std::string action;
  int64_t pass = 1;
  std::atomic<int64_t> num_passes{0};
  int log = -1;
};

/// "name:action" or "name:action@pass"; a spelling mistake must not look like a place that is never reached.
[[noreturn]] void refuse(const char* text) {
  throw_error(ErrorCode::kInvalidArgument, "DCOMM_FAILPOINT=", text,
              ": expected name:kill, name:stop or name:sleep=<ms>, and perhaps @<pass>");
}

void mutate(const char* name) {
  for (int i = 0; i < static_cast<int>(Mutation::kCount); ++i) {
    const auto mutation = static_cast<Mutation>(i);
    if (std::strcmp(mutation_name(mutation), name) == 0) active_mutation = mutation;
  }
  if (active_mutation == Mutation::kNone) {
    throw_error(ErrorCode::kInvalidArgument, "DCOMM_MUTATION=", name, ": expected a name of base/mutation.h");
  }
}

Armed* arm() {
  static Armed armed;
  const char* const mutation = std::getenv("DCOMM_MUTATION");
  if (mutation != nullptr && mutation[0] != '\0') mutate(mutation);
  const char* const text = std::getenv("DCOMM_FAILPOINT");
  if (text == nullptr || text[0] == '\0') return &armed;
  const std::string spec = text;
  const size_t colon = spec.find(':');
  const size_t at = spec.find('@');
  if (colon == std::string::npos) refuse(text);
  armed.action = spec.substr(colon + 1, at == std::string::npos ? at : at - colon - 1);
  const bool is_known = armed.action == "kill" || armed.action == "stop" || armed.action.rfind("sleep=", 0) == 0;
  armed.pass = at == std::string::npos ? 1 : std::atoll(spec.c_str() + at + 1);
  if (!is_known || armed.pass < 1) refuse(text);
  armed.name = spec.substr(0, colon);
  const char* const log = std::getenv("DCOMM_FAILPOINT_FD");
  if (log != nullptr) armed.log = std::atoi(log);
  return &armed;
}

void tell(const Armed& armed) {
  if (armed.log < 0) return;
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  char line[128];
  const int length = std::snprintf(line, sizeof line, "%s %lld %lld\n", armed.name.c_str(),
                                   static_cast<long long>(armed.pass), now.tv_sec * 1'000'000'000ll + now.tv_nsec);
  static_cast<void>(!::write(armed.log, line, static_cast<size_t>(length)));
}

}  // namespace

void failpoint(const char* name) {
  static Armed* const armed = arm();
  if (armed->name.empty() || armed->name != name) return;
  if (armed->num_passes.fetch_add(1, std::memory_order_relaxed) + 1 != armed->pass) return;
  tell(*armed);
  if (armed->action == "kill") {
    ::kill(::getpid(), SIGKILL);
    for (;;) ::pause();  // the signal may go to another thread first
  }
  if (armed->action == "stop") {
    ::kill(::getpid(), SIGSTOP);
    return;
  }
  const long ms = std::atol(armed->action.c_str() + std::strlen("sleep="));
  const timespec pause{ms / 1000, ms % 1000 * 1'000'000};
  nanosleep(&pause, nullptr);
}

}  // namespace dcomm

#endif
