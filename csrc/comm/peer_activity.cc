// Reads /proc/PID/status, which any user may. See proc(5). Floor: comm.
#include "comm/peer_activity.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <optional>

#include "comm/unix_socket.h"

namespace dcomm {
namespace {

constexpr timespec kBetweenLooks{0, 50'000'000};

struct Look {
  char state = 0;             // R, S, D, T, t, Z
  uint64_t num_switches = 0;  // how often the thread left its CPU: it waited for something, or was preempted
};

uint64_t number_after(const std::string& text, const std::string& name) {
  const size_t at = text.find("\n" + name + ":");
  return at == std::string::npos ? 0 : std::strtoull(text.c_str() + at + name.size() + 2, nullptr, 10);
}

std::optional<Look> look_at(pid_t pid) {
  const std::string folder = "/proc/" + std::to_string(pid);
  const GuardedFd file(::open((folder + "/status").c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return {};
  char buffer[8192];
  const ssize_t length = ::read(file.get(), buffer, sizeof buffer);
  if (length <= 0) return {};
  const std::string text(buffer, static_cast<size_t>(length));
  const size_t state = text.find("\nState:\t");
  if (state == std::string::npos || state + 8 >= text.size()) return {};
  Look look;
  look.state = text[state + 8];
  look.num_switches = number_after(text, "voluntary_ctxt_switches") + number_after(text, "nonvoluntary_ctxt_switches");
  return look;
}

}  // namespace

std::string activity_of(pid_t pid) {
  if (pid <= 0 || pid == ::getpid()) return "";
  const auto first = look_at(pid);
  if (!first) return "";
  ::nanosleep(&kBetweenLooks, nullptr);  // a signal that cuts it short makes the second look a little earlier
  const auto second = look_at(pid);
  if (!second) return "";
  const std::string state = std::string(" (state ") + second->state + ")";
  switch (second->state) {
    case 'T':
    case 't':
      return "it is stopped" + state + ": continue it with kill -CONT " + std::to_string(pid);
    case 'R':
      return "its main thread runs" + state;
    case 'D':
      return "its main thread waits for a device or a file" + state;
    case 'S':
      if (second->num_switches == first->num_switches) return "its main thread is not progressing" + state;
      return "its main thread sleeps and wakes up" + state;
    default:
      return "its main thread has ended" + state;
  }
}

}  // namespace dcomm
