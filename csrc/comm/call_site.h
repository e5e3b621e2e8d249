// Where the program called an operation, for texts: looked up when one stalls or fails, never before. Floor: comm.
//
// The thread that runs a synchronous operation still has the caller's frame. One that runs on the progress thread has
// none: there a call site is known where it was recorded at the call, which costs a walk over frames each time.
#pragma once

#include <string>

#include "exec/host_context.h"

namespace dcomm {

/// "train.py:88" of the calling thread; "" where it has no frame. Called without any lock of dcomm's.
using CallSiteLookup = std::string (*)();
/// Once, by what knows frames; without it there are no call sites. record: also at each asynchronous call.
void set_call_site_lookup(CallSiteLookup lookup, bool record);

/// Of the calling thread, now.
std::string call_site();
/// The same where call sites of asynchronous operations are recorded; else "".
std::string recorded_call_site();

/// What the ranks know of each other's call sites, by the operation's number.
void store_call_site(const HostContext& context, uint64_t seq, const std::string& site);
bool has_call_site(const HostContext& context, int rank, uint64_t seq);
std::string load_call_site(const HostContext& context, int rank, uint64_t seq);
/// Waits a moment, at most, until every rank that is in an operation has said where it was called: all have been told
/// to stop.
void await_call_sites(const HostContext& context);

/// Why a rank leaves or aborts, in its own words.
void store_parting_note(const HostContext& context, const std::string& note);
std::string load_parting_note(const HostContext& context, int rank);

}  // namespace dcomm
