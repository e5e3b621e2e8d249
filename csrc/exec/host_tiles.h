// The host's Kernels: an all-reduce's arrays bound to a table of tile functions. Floor: exec.
#pragma once

#include <cstddef>
#include <cstring>

#include "exec/host_kernels.h"
#include "schedule/partition.h"

namespace dcomm {

struct HostKernels {
  const TileFunctions* functions = nullptr;
  const std::byte* in = nullptr;
  std::byte* out = nullptr;
  size_t user_bytes = 0;  // per element
  size_t wire_bytes = 0;  // per element
  Scale pre;              // of this rank's own elements
  Scale post;             // of the result

  const std::byte* source(size_t element) const { return in + element * user_bytes; }
  std::byte* target(size_t element) const { return out + element * user_bytes; }

  template <class Exec>
  void encode(Exec& exec, std::byte* slot, Range range) const {
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      functions->encode(slot + first * wire_bytes, source(range.offset + first), n, pre);
    });
  }

  template <class Exec>
  void decode(Exec& exec, Range range, const std::byte* slot) const {
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      functions->decode(target(range.offset + first), slot + first * wire_bytes, n);
    });
  }

  template <class Exec>
  void forward(Exec& exec, std::byte* to, const std::byte* from, Range range) const {
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      if (to != from) std::memcpy(to + first * wire_bytes, from + first * wire_bytes, n * wire_bytes);
      functions->decode(target(range.offset + first), from + first * wire_bytes, n);
    });
  }

  template <class Exec>
  void accumulate(Exec& exec, std::byte* to, const std::byte* from, Range range) const {
    add_own(exec, to, from, range, false);
  }

  template <class Exec>
  void finish(Exec& exec, std::byte* to, const std::byte* from, Range range) const {
    add_own(exec, to, from, range, true);
  }

  template <class Exec, class From, class To>
  void reduce_canonical(Exec& exec, Range range, From&& from, To&& to) const {
    const int world_size = exec.world_size();
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      const void** inputs = exec.input_pointers();
      void** outputs = exec.output_pointers();
      int num_outputs = 0;
      for (int rank = 0; rank < world_size; ++rank) {
        inputs[rank] = nullptr;
        if (rank == exec.rank()) continue;
        inputs[rank] = from(rank) + first * wire_bytes;
        outputs[num_outputs++] = to(rank) + first * wire_bytes;
      }
      ReduceTile tile;
      tile.inputs = inputs;
      tile.num_inputs = world_size;
      tile.own_index = exec.rank();
      tile.own = source(range.offset + first);
      tile.out = target(range.offset + first);
      tile.wire_outputs = outputs;
      tile.num_wire_outputs = num_outputs;
      tile.count = n;
      tile.pre = pre;
      tile.post = post;
      tile.round_own = true;  // whoever owns the chunk, the element's terms are the same
      tile.is_final = true;
      functions->reduce(tile);
    });
  }

 private:
  /// One hop of the ring: the travelling partial sum first, then my term.
  template <class Exec>
  void add_own(Exec& exec, std::byte* to, const std::byte* from, Range range, bool is_final) const {
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      const void* inputs[2] = {from + first * wire_bytes, nullptr};
      void* outputs[1] = {to + first * wire_bytes};
      ReduceTile tile;
      tile.inputs = inputs;
      tile.num_inputs = 2;
      tile.own_index = 1;
      tile.own = source(range.offset + first);
      tile.out = is_final ? target(range.offset + first) : nullptr;
      tile.wire_outputs = outputs;
      tile.num_wire_outputs = 1;
      tile.count = n;
      tile.pre = pre;
      tile.post = is_final ? post : Scale{};
      tile.is_final = is_final;
      functions->reduce(tile);
    });
  }
};

}  // namespace dcomm
