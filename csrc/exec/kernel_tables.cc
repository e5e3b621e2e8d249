// Chooses the table of tile functions at run time. Floor: exec. This file is compiled for the baseline
// instruction set: it runs before anything is known about the CPU.
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.h"
#include "exec/host_kernels.h"

namespace dcomm {

#if !defined(DCOMM_HAVE_X86_KERNELS)
const KernelTable* kernel_table_avx2() { return nullptr; }
const KernelTable* kernel_table_avx512() { return nullptr; }
#endif
#if !defined(DCOMM_HAVE_NEON_KERNELS)
const KernelTable* kernel_table_neon() { return nullptr; }
#endif

namespace {

bool cpu_has_avx2() {
#if defined(DCOMM_HAVE_X86_KERNELS)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool cpu_has_avx512() {
#if defined(DCOMM_HAVE_X86_KERNELS)
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

struct Candidate {
  const char* isa;
  const KernelTable* table;  // nullptr where not compiled in or not supported by this CPU
};

}  // namespace

const KernelTable* select_kernel_table(const char* isa) {
  const Candidate candidates[] = {
      // best first
      {"avx512", cpu_has_avx512() ? kernel_table_avx512() : nullptr},
      {"avx2", cpu_has_avx2() ? kernel_table_avx2() : nullptr},
      {"neon", kernel_table_neon()},  // where compiled in, every CPU has it
      {"scalar", kernel_table_scalar()},
  };
  const bool any = isa == nullptr || isa[0] == '\0';
  bool known = false;
  std::string supported;
  for (const Candidate& candidate : candidates) {
    const bool named = !any && std::strcmp(isa, candidate.isa) == 0;
    known = known || named;
    if (candidate.table == nullptr) continue;
    if (any || named) return candidate.table;
    supported += supported.empty() ? candidate.isa : std::string(", ") + candidate.isa;
  }
  throw_error(ErrorCode::kInvalidArgument, "instruction set '", isa, "' is ",
              known ? "not supported by this CPU or this build" : "unknown",
              ": expected one of scalar, avx2, avx512, neon, of which this CPU runs ", supported,
              "; leave it empty to use the best");
}

const KernelTable* kernel_table_from_environment() {
  const char* const name = "DCOMM_ISA";
  try {
    return select_kernel_table(std::getenv(name));
  } catch (const Error& error) {
    throw_error(error.code(), name, ": ", error.what());
  }
}

}  // namespace dcomm
