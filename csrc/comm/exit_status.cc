// A zombie shows its status in /proc; who has been reaped, only through a pidfd. Floor: comm.
#include "comm/exit_status.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "comm/unix_socket.h"

namespace dcomm {
namespace {

// As in linux/pidfd.h since 6.15, which older machines do not have.
struct PidfdInfo {
  uint64_t mask = 0;
  uint64_t cgroup_id = 0;
  uint32_t ids[11] = {};
  int32_t exit_code = 0;
};
static_assert(sizeof(PidfdInfo) == 64);
constexpr uint64_t kInfoExit = 1 << 3;
constexpr unsigned long kGetInfo = _IOWR(0xff, 11, PidfdInfo);

std::optional<int> status_of_reaped(int pidfd) {
  PidfdInfo info;
  info.mask = kInfoExit;
  if (pidfd < 0 || ::ioctl(pidfd, kGetInfo, &info) != 0 || (info.mask & kInfoExit) == 0) return {};
  return info.exit_code;
}

/// "pid (name) Z ... exit_code": the last field.
std::optional<int> status_of_zombie(pid_t pid) {
  const GuardedFd file(::open(("/proc/" + std::to_string(pid) + "/stat").c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return {};
  char text[1024];
  const ssize_t length = ::read(file.get(), text, sizeof text - 1);
  if (length <= 0) return {};
  text[length] = '\0';
  const char* const name_end = std::strrchr(text, ')');
  const char* const last = std::strrchr(text, ' ');
  if (name_end == nullptr || last <= name_end + 2 || name_end[2] != 'Z') return {};
  return std::atoi(last + 1);
}

/// sigabbrev_np is younger than the C library of many machines.
const char* signal_name(int number) {
  switch (number) {
    case SIGHUP:
      return "SIGHUP";
    case SIGINT:
      return "SIGINT";
    case SIGABRT:
      return "SIGABRT";
    case SIGBUS:
      return "SIGBUS";
    case SIGKILL:
      return "SIGKILL";
    case SIGSEGV:
      return "SIGSEGV";
    case SIGTERM:
      return "SIGTERM";
    default:
      return nullptr;
  }
}

std::string text_of(int status) {
  if (WIFEXITED(status)) return "exited with status " + std::to_string(WEXITSTATUS(status));
  if (!WIFSIGNALED(status)) return "";
  const int number = WTERMSIG(status);
  const char* const name = signal_name(number);
  return "was killed by " + (name != nullptr ? std::string(name) : "signal " + std::to_string(number));
}

}  // namespace

std::string exit_status_text(pid_t pid, int pidfd, std::chrono::milliseconds patience) {
  if (pid <= 0 || pidfd < 0) return "";  // a number alone may belong to somebody else by now
  pollfd end{pidfd, POLLIN, 0};
  if (::poll(&end, 1, static_cast<int>(patience.count())) <= 0) return "";
  std::optional<int> status = status_of_reaped(pidfd);
  if (!status) status = status_of_zombie(pid);
  if (!status) status = status_of_reaped(pidfd);  // in between
  return status ? text_of(*status) : "";
}

}  // namespace dcomm
