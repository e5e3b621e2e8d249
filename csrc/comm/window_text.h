// Text in a window: written by its owner, read by peers at any time. Floor: comm.
//
// Words, not bytes, so that readers and the writer meet in atomics only. A reader that meets the writer sees no text.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <string_view>

#include "protocol/control.h"

namespace dcomm {

/// number: not 0. What does not fit is cut off, between characters of UTF-8.
template <size_t kNumWords>
void store_text(WindowText<kNumWords>& to, uint64_t number, std::string_view text) {
  uint64_t words[kNumWords] = {};
  size_t nbytes = std::min(text.size(), sizeof(words) - 1);
  while (nbytes != 0 && nbytes < text.size() && (static_cast<unsigned char>(text[nbytes]) & 0xc0) == 0x80) --nbytes;
  std::memcpy(words, text.data(), nbytes);
  std::atomic_ref<uint64_t>(to.number).store(0, std::memory_order_relaxed);
  for (size_t i = 0; i < kNumWords; ++i) {
    std::atomic_ref<uint64_t>(to.words[i]).store(words[i], std::memory_order_release);  // after the 0
  }
  std::atomic_ref<uint64_t>(to.number).store(number, std::memory_order_release);
}

/// Whether there is a text about `number`; it may be empty.
template <size_t kNumWords>
bool has_text(const WindowText<kNumWords>& from, uint64_t number) {
  return std::atomic_ref<uint64_t>(const_cast<uint64_t&>(from.number)).load(std::memory_order_acquire) == number;
}

/// The text about `number`; "" where there is none.
template <size_t kNumWords>
std::string load_text(const WindowText<kNumWords>& from, uint64_t number) {
  if (!has_text(from, number)) return "";
  uint64_t words[kNumWords];
  for (size_t i = 0; i < kNumWords; ++i) {
    words[i] = std::atomic_ref<uint64_t>(const_cast<uint64_t&>(from.words[i])).load(std::memory_order_acquire);
  }
  if (!has_text(from, number)) return "";
  const char* const bytes = reinterpret_cast<const char*>(words);
  return {bytes, strnlen(bytes, sizeof(words))};
}

}  // namespace dcomm
