#include "base/error.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>

namespace dcomm {

namespace {

constexpr char kRankFormat[] = "%d/%d/%" PRId64;
constexpr char kRankEnd = ';';  // what was cut off in the middle has none

}  // namespace

NamedRanks named_ranks(const std::vector<int>& ranks) {
  NamedRanks named;
  for (const int rank : ranks) named.push_back({rank});
  return named;
}

std::string pack_error(const std::string& text, const NamedRanks& ranks) {
  std::string packed = text;
  if (!ranks.empty()) packed += '\0';
  for (const NamedRank& one : ranks) {
    char field[64];
    std::snprintf(field, sizeof field, kRankFormat, one.rank, one.pid, one.last_seq);
    packed += field;
    packed += kRankEnd;
  }
  return packed;
}

Error unpack_error(ErrorCode code, std::string_view packed) {
  const size_t length = std::min(packed.find('\0'), packed.size());
  std::string_view rest = packed.substr(std::min(length + 1, packed.size()));
  NamedRanks ranks;
  for (size_t end = rest.find(kRankEnd); end != std::string_view::npos; end = rest.find(kRankEnd)) {
    NamedRank one;
    const std::string field(rest.substr(0, end));
    if (std::sscanf(field.c_str(), "%d/%d/%" SCNd64, &one.rank, &one.pid, &one.last_seq) != 3) break;
    ranks.push_back(one);
    rest.remove_prefix(end + 1);
  }
  return {code, std::string(packed.substr(0, length)), std::move(ranks)};
}

void throw_errno(ErrorCode code, const std::string& what, int errno_value) {
  throw_error(code, what, ": ", std::strerror(errno_value), " (errno ", errno_value, ")");
}

}  // namespace dcomm
