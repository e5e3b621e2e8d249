// What a rank that does not answer is doing, as the kernel tells. Floor: comm.
#pragma once

#include <sys/types.h>

#include <string>

namespace dcomm {

/// "it is stopped (state T): ...", "its main thread is not progressing (state S)" and the like, of the main thread of
/// process `pid`, from two looks into /proc 50 ms apart. Empty where /proc does not tell: 0 for `pid`, this process
/// itself, another process namespace.
///
/// Not progressing: no wake-up between the looks. In a Python process that is time.sleep(), a system call, or C code
/// that sleeps while it holds the GIL; in each case that thread runs no Python code.
std::string activity_of(pid_t pid);

}  // namespace dcomm
