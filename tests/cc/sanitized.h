// Whether a sanitizer is watching: everything is several times slower then, so the checks do less of the same.
#pragma once

namespace dcomm::checks {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace dcomm::checks
