#include "base/error.h"

#include <cstring>

namespace dcomm {

void throw_errno(ErrorCode code, const std::string& what, int errno_value) {
  throw_error(code, what, ": ", std::strerror(errno_value), " (errno ", errno_value, ")");
}

}  // namespace dcomm
