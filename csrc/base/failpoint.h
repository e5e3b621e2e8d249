// Named places at which a test build can end, stop or delay this process. Floor: base.
//
// Random moments rarely meet a window of 50 ns, so the tests name it: DCOMM_FAILPOINT=after_signal:kill@3 kills the
// process (SIGKILL) when a thread comes to that place for the third time. Actions: kill, stop (SIGSTOP), sleep=<ms>;
// without @ the first time counts. With DCOMM_FAILPOINT_FD the line "<name> <pass> <CLOCK_MONOTONIC in ns>" goes to
// that descriptor just before. Read at the first place reached, so a forked rank may set them for itself. There too:
// DCOMM_MUTATION=<name> breaks a rule of base/mutation.h, so that a storm can be seen to notice.
//
// In a normal build every `failpoint(...)` is empty, and not even its name stays
// (tests/reliability/test_failpoints.py).
#pragma once

#include "base/macros.h"

namespace dcomm {

#if defined(DCOMM_TESTING) && !defined(__CUDACC__)
void failpoint(const char* name);
#else
DCOMM_HOST_DEVICE constexpr void failpoint(const char*) {}
#endif

}  // namespace dcomm
