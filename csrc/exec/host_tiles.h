// The host's Kernels: a collective's arrays bound to a table of tile functions. Floor: exec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/mutation.h"
#include "exec/host_kernels.h"
#include "memory/windows.h"
#include "protocol/elements.h"
#include "protocol/envelope.h"
#include "schedule/partition.h"

namespace dcomm {

struct HostKernels {
  const TileFunctions* functions = nullptr;
  Loader in;
  Storer out;
  size_t user_bytes = 0;  // per element
  size_t wire_bytes = 0;  // per element
  Scale pre;              // of this rank's own elements
  Scale post;             // of the result

  /// Where `in` and `out` lie on every rank; nullptr: in this rank's own memory.
  const Windows* in_windows = nullptr;
  const Windows* out_windows = nullptr;

  size_t out_shift = 0;            // elements by which a result lands earlier than its range says
  uint64_t* sent_bytes = nullptr;  // counts what goes into slots and packets; for one lane

  // Of one array; in a list of them an all_reduce goes by runs.
  const std::byte* source(size_t element) const { return in.array + element * user_bytes; }
  std::byte* target(size_t element) const { return out.array + (element - out_shift) * user_bytes; }
  HostKernels shifted_out(size_t offset) const {
    HostKernels shifted = *this;
    shifted.out_shift += offset;
    return shifted;
  }

  template <class Exec>
  void encode(Exec& exec, std::byte* slot, Range range) const {
    note_sent(range.count);
    exec.for_each_pack(range.count,
                       [&](size_t first, size_t n) { encode(slot + first * wire_bytes, {range.offset + first, n}); });
  }

  template <class Exec>
  void decode(Exec& exec, Range range, const std::byte* slot) const {
    exec.for_each_pack(range.count,
                       [&](size_t first, size_t n) { decode({range.offset + first, n}, slot + first * wire_bytes); });
  }

  template <class Exec>
  void forward(Exec& exec, std::byte* to, const std::byte* from, Range range) const {
    note_sent(range.count);
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      if (to != from) std::memcpy(to + first * wire_bytes, from + first * wire_bytes, n * wire_bytes);
      decode({range.offset + first, n}, from + first * wire_bytes);
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
    int num_sent = 0;
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      const void** inputs = exec.input_pointers();
      void** outputs = exec.output_pointers();
      int num_outputs = 0;
      for (int rank = 0; rank < world_size; ++rank) {
        inputs[rank] = nullptr;
        if (rank == exec.rank()) continue;
        inputs[rank] = from(rank) + first * wire_bytes;
        std::byte* const output = to(rank);
        if (output != nullptr) outputs[num_outputs++] = output + first * wire_bytes;
      }
      ReduceTile tile;
      tile.inputs = inputs;
      tile.num_inputs = world_size;
      tile.own_index = exec.rank();
      tile.wire_outputs = outputs;
      tile.num_wire_outputs = num_outputs;
      tile.pre = pre;
      tile.post = post;
      tile.round_own = true;  // whoever owns the chunk, the element's terms are the same
      tile.is_final = true;
      reduce(tile, {range.offset + first, n}, inputs, outputs);
      num_sent = num_outputs;
    });
    note_sent(range.count * static_cast<size_t>(num_sent));
  }

  template <class Exec>
  void reduce_everywhere(Exec& exec, Range range) const {
    if (range.count == 0) return;
    const auto in_offset = source(range.offset) - in_windows->at(exec.rank());
    const auto out_offset = target(range.offset) - out_windows->at(exec.rank());
    reduce_canonical(
        exec, range, [&](int peer) { return in_windows->at(peer) + in_offset; },
        [&](int peer) { return out_windows->at(peer) + out_offset; });
  }

  template <class Exec>
  void reduce_here(Exec& exec, Range range) const {
    if (range.count == 0) return;
    reduce_canonical(exec, range, [&](int peer) { return lent_source(exec, peer, range.offset); }, NoOutputs{});
  }

  template <class Exec>
  void fetch(Exec& exec, size_t to_offset, int peer, Range range) const {
    if (range.count == 0) return;
    const std::byte* const from = lent_source(exec, peer, range.offset);
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      std::memcpy(target(to_offset + first), from + first * user_bytes, n * user_bytes);
    });
  }

  template <class Exec>
  void copy(Exec& exec, std::byte* to, const std::byte* from, Range range) const {
    note_sent(range.count);
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      std::memcpy(to + first * wire_bytes, from + first * wire_bytes, n * wire_bytes);
    });
  }

  template <class Exec>
  void keep(Exec& exec, size_t to_offset, Range range) const {
    if (target(to_offset) == source(range.offset)) return;
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      std::memcpy(target(to_offset + first), source(range.offset + first), n * user_bytes);
    });
  }

  template <class Exec, class From, class To>
  void combine(Exec& exec, Range range, From&& from, int num_from, To&& to, int num_to, bool is_final) const {
    note_sent(range.count * static_cast<size_t>(num_to));
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      const void* inputs[3] = {};  // of three, the canonical order is (0 + 1) + 2: own, first child, second child
      void* outputs[2] = {};
      for (int i = 0; i < num_from; ++i) inputs[i + 1] = from(i) + first * wire_bytes;
      for (int i = 0; i < num_to; ++i) outputs[i] = to(i) + first * wire_bytes;
      ReduceTile tile;
      tile.inputs = inputs;
      tile.num_inputs = 1 + num_from;
      tile.own_index = 0;
      tile.wire_outputs = outputs;
      tile.num_wire_outputs = num_to;
      tile.pre = pre;
      tile.post = is_final ? post : Scale{};
      tile.is_final = is_final;
      reduce(tile, {range.offset + first, n}, inputs, outputs);
    });
  }

  template <class Exec>
  void put_packets(Exec& exec, uint64_t seq, Range range) const {
    note_sent(range.count * static_cast<size_t>(exec.world_size() - 1));
    const auto share = exec.packet_share(range.count * wire_bytes);
    const size_t first = range.offset + share.offset / wire_bytes;
    const std::byte* data = source(first);
    if (user_bytes != wire_bytes || pre.number != 1.0 || in.spans != nullptr) {
      std::byte* const own = exec.packet_buffer(exec.world_size());
      encode(own, {first, share.nbytes / wire_bytes});
      data = own;
    }
    exec.put_packets(seq, share, data);
  }

  template <class Exec>
  bool reduce_packets(Exec& exec, uint64_t seq, Range range) const {
    const auto share = exec.packet_share(range.count * wire_bytes);
    const size_t first = range.offset + share.offset / wire_bytes;
    const void** const inputs = exec.input_pointers();
    const int world_size = share.num_lines != 0 ? exec.world_size() : 0;
    bool failed = false;
    for (int rank = 0; rank < world_size && !failed; ++rank) {
      inputs[rank] = nullptr;
      if (rank == exec.rank() || !exec.waits_first_for(rank)) continue;
      inputs[rank] = exec.take_packets(rank, seq, share);
      failed = inputs[rank] == nullptr;
    }
    for (int rank = 0; rank < world_size && !failed; ++rank) {
      if (rank == exec.rank() || inputs[rank] != nullptr) continue;
      inputs[rank] = exec.take_packets(rank, seq, share);
      failed = inputs[rank] == nullptr;
    }
    if (exec.any(failed)) return false;
    if (share.nbytes == 0) return true;
    ReduceTile tile;
    tile.inputs = inputs;
    tile.num_inputs = exec.world_size();
    tile.own_index = exec.rank();
    tile.pre = pre;
    tile.post = post;
    tile.round_own = true;
    tile.is_final = true;
    reduce(tile, {first, share.nbytes / wire_bytes}, inputs, nullptr);
    return true;
  }

  /// The call of a group of one rank.
  void reduce_alone(size_t count) const {
    const void* inputs[1] = {nullptr};
    ReduceTile tile;
    tile.inputs = inputs;
    tile.num_inputs = 1;
    tile.own_index = 0;
    tile.pre = pre;
    tile.post = post;
    tile.round_own = true;
    tile.is_final = true;
    reduce(tile, {0, count}, inputs, nullptr);
  }

  template <class Exec>
  void put_envelope(Exec& exec, std::byte* slot, const Envelope& envelope) const {
    if (exec.lane() == 0) std::memcpy(slot, &envelope, sizeof(envelope));
  }

  template <class Exec>
  void get_envelope(Exec&, Envelope& envelope, const std::byte* slot) const {
    std::memcpy(&envelope, slot, sizeof(envelope));
  }

 private:
  /// Of a peer's input, which may lie elsewhere in the region than this rank's.
  template <class Exec>
  const std::byte* lent_source(const Exec& exec, int peer, size_t element) const {
    return in_windows->at(peer) + exec.lent(peer).in_offset + element * user_bytes;
  }

  void note_sent(size_t count) const {
    if (sent_bytes != nullptr) *sent_bytes += count * wire_bytes;
  }

  /// `slot` holds the terms of `part`, or its results.
  void encode(std::byte* slot, Range part) const {
    in.for_each_run(part.offset, part.count, user_bytes, [&](size_t done, size_t n, const std::byte* from) {
      functions->encode(slot + done * wire_bytes, from, n, pre);
    });
  }
  void decode(Range part, const std::byte* slot) const {
    out.for_each_run(part.offset - out_shift, part.count, user_bytes,
                     [&](size_t done, size_t n, std::byte* to) { functions->decode(to, slot + done * wire_bytes, n); });
  }

  /// The tile that is `part` of the arrays; only what is final is stored there. inputs, outputs: the tile's own.
  void reduce(ReduceTile& tile, Range part, const void** inputs, void** outputs) const {
    if (DCOMM_UNLIKELY(in.spans != nullptr || (tile.is_final && out.spans != nullptr))) {
      return reduce_runs(tile, part, inputs, outputs);
    }
    tile.own = source(part.offset);
    tile.out = tile.is_final ? target(part.offset) : nullptr;
    tile.count = part.count;
    reduce(tile);
  }

  /// As many tiles as the arrays cut it into. Moves inputs and outputs along.
  __attribute__((noinline)) void reduce_runs(ReduceTile& tile, Range part, const void** inputs, void** outputs) const {
    const auto reduce_run = [&](size_t n, const std::byte* own, std::byte* result) {
      tile.own = own;
      tile.out = result;
      tile.count = n;
      reduce(tile);
      for (int i = 0; i < tile.num_inputs; ++i) {
        if (inputs[i] != nullptr) inputs[i] = static_cast<const std::byte*>(inputs[i]) + n * wire_bytes;
      }
      for (int i = 0; i < tile.num_wire_outputs; ++i) outputs[i] = static_cast<std::byte*>(outputs[i]) + n * wire_bytes;
    };
    in.for_each_run(part.offset, part.count, user_bytes, [&](size_t done, size_t n, const std::byte* own) {
      if (!tile.is_final) return reduce_run(n, own, nullptr);
      out.for_each_run(part.offset + done - out_shift, n, user_bytes, [&](size_t further, size_t m, std::byte* result) {
        reduce_run(m, own + further * user_bytes, result);
      });
    });
  }

  void reduce(const ReduceTile& tile) const {
#if defined(DCOMM_TESTING)
    if (mutated(Mutation::kWrongTailOp)) return reduce_with_wrong_tail(tile);
#endif
    functions->reduce(tile);
  }

#if defined(DCOMM_TESTING)
  /// Of the elements that do not fill a pack the own ones are subtracted instead of added.
  void reduce_with_wrong_tail(ReduceTile tile) const {
    const size_t tail = tile.count % kChunkAlign;
    tile.count -= tail;
    functions->reduce(tile);
    std::vector<const void*> inputs(tile.inputs, tile.inputs + tile.num_inputs);
    std::vector<void*> outputs(tile.wire_outputs, tile.wire_outputs + tile.num_wire_outputs);
    for (const void*& input : inputs) {
      if (input != nullptr) input = static_cast<const std::byte*>(input) + tile.count * wire_bytes;
    }
    for (void*& output : outputs) output = static_cast<std::byte*>(output) + tile.count * wire_bytes;
    tile.inputs = inputs.data();
    tile.wire_outputs = outputs.data();
    tile.own = static_cast<const std::byte*>(tile.own) + tile.count * user_bytes;
    if (tile.out != nullptr) tile.out = static_cast<std::byte*>(tile.out) + tile.count * user_bytes;
    tile.count = tail;
    tile.pre.number = -tile.pre.number;
    if (tail != 0) functions->reduce(tile);
  }
#endif

  /// One hop of the ring: the travelling partial sum first, then my term.
  template <class Exec>
  void add_own(Exec& exec, std::byte* to, const std::byte* from, Range range, bool is_final) const {
    note_sent(range.count);
    exec.for_each_pack(range.count, [&](size_t first, size_t n) {
      const void* inputs[2] = {from + first * wire_bytes, nullptr};
      void* outputs[1] = {to + first * wire_bytes};
      ReduceTile tile;
      tile.inputs = inputs;
      tile.num_inputs = 2;
      tile.own_index = 1;
      tile.wire_outputs = outputs;
      tile.num_wire_outputs = 1;
      tile.pre = pre;
      tile.post = is_final ? post : Scale{};
      tile.is_final = is_final;
      reduce(tile, {range.offset + first, n}, inputs, outputs);
    });
  }
};

}  // namespace dcomm
