// What each rank that is a process notes of what it launches on its GPU, in its window on the host, where its peers
// read it; and what the notes of two ranks say of a failure that their kernels have reported. Floor: comm.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "exec/host_context.h"
#include "launch/cuda_process_group.h"

namespace dcomm {

class CudaNotes {
 public:
  /// context: of the communicator, which lives longer.
  explicit CudaNotes(const HostContext& context) : context_(context) {}

  // ---- One thread at a time.

  /// Before the launch: what it is. One that is refused leaves its place to the next.
  void note_launching(const OpRecord& record);
  /// After it: that it is.
  void note_launched(const OpRecord& record);

  // ---- Any thread.

  /// The number of the collective that `rank` has launched last.
  uint64_t position(int rank) const;
  /// The messages that `rank` has launched to and from `peer`.
  CudaMessageCounts messages(int rank, int peer) const;
  /// Both calls that differ, in words; "" where the notes do not say it (any more).
  std::string describe_disagreement(const DcommCudaFailure& failure) const;
  /// Why a message between two ranks has waited in vain.
  std::string describe_stalled_message(const DcommCudaFailure& failure) const;

 private:
  std::string describe_different_collectives(int a, int b, uint32_t number) const;
  std::string describe_different_messages(int sender, int receiver) const;
  bool is_dead_end_of(int a, int b, bool sends) const;
  std::vector<CudaMessageRecord> list_messages(int rank, Collective kind, int peer) const;
  std::optional<CudaMessageRecord> find_message(int rank, Collective kind, int peer, uint64_t number) const;

  const HostContext& context_;
  uint64_t num_messages_ = 0;  // launched by this rank, to and from all
};

}  // namespace dcomm
