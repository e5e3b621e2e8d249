// The bell of a rank that waits for messages: one word on which it sleeps, whoever may come first. Floor: exec.
//
// Ranks do not send messages to themselves, so the flag that would say so is the bell. Who has moved a message's flag
// rings when somebody sleeps. That look must not overtake the flag, nor the sleeper's look at the flags overtake its
// count: the flags are moved by an exchange and looked at by loads that are sequentially consistent, like the count.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "exec/host_context.h"

namespace dcomm {

inline Flag& message_bell(const HostContext& context, int rank) { return context.flag(rank, 0, Flow::kMessage, rank); }

/// Wakes `rank` where it sleeps on its bell.
void ring_message_bell(const HostContext& context, int rank);
/// Sleeps until this rank's bell rings, at most max_ns (or less: signals); not at all when `arrived`, which looks at
/// what the bell is rung for.
void sleep_on_message_bell(const HostContext& context, int64_t max_ns, const std::function<bool()>& arrived);

}  // namespace dcomm
