#include "exec/message_bell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

#include "base/failpoint.h"

namespace dcomm {

namespace {

uint32_t* low_word(Flag& bell) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the futex word is the low half of the flag");
  return reinterpret_cast<uint32_t*>(&bell.value);
}

}  // namespace

void ring_message_bell(const HostContext& context, int rank) {
  Flag& bell = message_bell(context, rank);
  if (std::atomic_ref<uint32_t>(bell.sleepers).load(std::memory_order_seq_cst) == 0) return;
  std::atomic_ref<uint64_t>(bell.value).fetch_add(1, std::memory_order_seq_cst);
  syscall(SYS_futex, low_word(bell), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void sleep_on_message_bell(const HostContext& context, int64_t max_ns, const std::function<bool()>& arrived) {
  Flag& bell = message_bell(context, context.rank);
  std::atomic_ref<uint32_t> sleepers(bell.sleepers);
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  const uint64_t seen = std::atomic_ref<uint64_t>(bell.value).load(std::memory_order_seq_cst);
  if (!arrived()) {
    failpoint("waiting_for_messages");
    const timespec slice{max_ns / 1'000'000'000, max_ns % 1'000'000'000};
    syscall(SYS_futex, low_word(bell), FUTEX_WAIT, static_cast<uint32_t>(seen), &slice, nullptr, 0);
  }
  sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace dcomm
