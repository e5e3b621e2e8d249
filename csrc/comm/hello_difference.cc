// In what the hellos of one job's ranks differ, in words. Floor: comm.
#include "comm/hello.h"

namespace dcomm {
namespace {

using Hellos = std::vector<const Hello*>;

bool versions_differ(const Hellos& hellos) {
  for (const Hello* hello : hellos) {
    if (hello->protocol != hellos[0]->protocol || hello->version != hellos[0]->version) return true;
  }
  return false;
}

std::string version_text(const Hellos& hellos) {
  std::string text = "dcomm versions differ:";
  for (const Hello* hello : hellos) {
    text += (hello == hellos[0] ? " rank " : ", rank ") + std::to_string(hello->rank) + " has " + hello->version +
            " (protocol " + std::to_string(hello->protocol) + ")";
  }
  return text + "; install the same dcomm for all ranks";
}

template <class Value>
std::string value_text(const Hellos& hellos, const char* what, const char* advice, const Value& value_of) {
  std::string text;
  for (const Hello* hello : hellos) {
    if (value_of(*hello) == value_of(*hellos[0])) continue;
    text += ", rank " + std::to_string(hello->rank) + " has " + std::to_string(value_of(*hello));
  }
  if (text.empty()) return text;
  return std::string(what) + " differs: rank 0 has " + std::to_string(value_of(*hellos[0])) + text + "; " + advice;
}

}  // namespace

std::string first_difference(const std::vector<const Hello*>& hellos, bool* of_versions) {
  const bool versions = versions_differ(hellos);
  if (of_versions != nullptr) *of_versions = versions;
  if (versions) return version_text(hellos);
  std::string text = value_text(hellos, "world_size", "start all ranks with the same WORLD_SIZE",
                                [](const Hello& hello) { return hello.world_size; });
  if (!text.empty()) return text;
  text =
      value_text(hellos, "the count of communicators made before", "make communicators in the same order on all ranks",
                 [](const Hello& hello) { return hello.init_counter; });
  if (!text.empty()) return text;
  return value_text(hellos, "the hash of the configuration", "set the DCOMM_* variables equally on all ranks",
                    [](const Hello& hello) { return hello.config_hash; });
}

}  // namespace dcomm
