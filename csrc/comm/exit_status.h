// How another process ended, as far as the kernel tells. Floor: comm.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>

namespace dcomm {

/// "exited with status 0", "was killed by SIGKILL"; empty where nobody can tell: it still runs, or was reaped by a
/// kernel before Linux 6.15. Waits at most `patience` for its end. pidfd: of that process, or -1.
std::string exit_status_text(pid_t pid, int pidfd, std::chrono::milliseconds patience);

}  // namespace dcomm
