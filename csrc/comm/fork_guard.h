// What a forked child may not do: use its parent's communicators. Floor: comm.
#pragma once

#include <cstdint>

namespace dcomm {

/// True in a child that was forked after the first call of install_fork_guard(). One relaxed load: no
/// getpid in the hot path.
bool in_forked_child() noexcept;

/// How many forks lie between this process and the first caller of install_fork_guard(). An object that
/// was made in another generation belongs to the parent: its destructor must do nothing. (A forked child
/// may make communicators of its own.) One relaxed load.
uint32_t fork_generation() noexcept;

/// Installs the pthread_atfork child handler once per process.
void install_fork_guard();

/// Descriptors registered here are closed in a forked child, so that a data-loader worker does not keep
/// a dead rank's socket open. The table has a fixed size (4096, the handler may not allocate); what does
/// not fit stays open in the child, which is harmless but for a later hang-up: the pidfd still tells.
/// Forget a descriptor before closing it, else the child might close another one of the same number.
void close_in_child(int descriptor);
void forget_in_child(int descriptor);

}  // namespace dcomm
