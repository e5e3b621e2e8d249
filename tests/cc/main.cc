// The checks as a plain executable, for the sanitizers: dcomm_checks [--mutation NAME] [NAME ...]
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "base/mutation.h"
#include "check.h"

namespace {

bool choose_mutation(const char* name) {
  for (int i = 0; i < static_cast<int>(dcomm::Mutation::kCount); ++i) {
    const auto mutation = static_cast<dcomm::Mutation>(i);
    if (std::strcmp(dcomm::mutation_name(mutation), name) == 0) {
      dcomm::active_mutation = mutation;
      return true;
    }
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> wanted;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--mutation") == 0 && i + 1 < argc) {
      if (!choose_mutation(argv[++i])) {
        std::fprintf(stderr, "unknown mutation '%s'\n", argv[i]);
        return 2;
      }
    } else if (std::strcmp(argv[i], "--list") == 0) {
      for (const auto& check : dcomm::checks::cases()) std::puts(check.name);
      return 0;
    } else {
      wanted.emplace_back(argv[i]);
    }
  }
  int num_run = 0;
  int num_failed = 0;
  for (const auto& check : dcomm::checks::cases()) {
    bool selected = wanted.empty();
    for (const auto& name : wanted) selected = selected || name == check.name;
    if (!selected) continue;
    ++num_run;
    try {
      check.run();
      std::printf("ok      %s\n", check.name);
    } catch (const std::exception& error) {
      ++num_failed;
      std::printf("FAILED  %s: %s\n", check.name, error.what());
    }
    std::fflush(stdout);
  }
  std::printf("%d checks run, %d failed\n", num_run, num_failed);
  if (num_run == 0) return 2;
  return num_failed == 0 ? 0 : 1;
}
