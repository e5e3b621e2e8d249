// The host's Kernels for wires whose elements share scales by blocks: what two_shot asks for. Floor: exec.
//
// Lanes take whole groups (schedule/block_layout.h), so that no two share a scale. In a list of arrays a block may lie
// in several: there the work goes by groups, and one that does not lie in a single array is gathered, or dealt out.
#pragma once

#include <algorithm>
#include <cstring>

#include "exec/host_tiles.h"
#include "schedule/block_layout.h"

namespace dcomm {

class HostBlockKernels {
 public:
  /// arrays: with tile functions of this wire.
  HostBlockKernels(const HostKernels& arrays, DType wire) : arrays_(arrays), layout_{block_count_of(wire)} {}

  template <class Exec>
  void encode(Exec& exec, std::byte* slot, Range range) const {
    note_sent(range.count, 1);
    for_each_piece(exec, range, [&](size_t at, Range piece) {
      alignas(64) std::byte gathered[kMaxGroupBytes];
      arrays_.functions->encode(slot + at, source(piece, gathered), piece.count, arrays_.pre);
    });
  }

  template <class Exec>
  void decode(Exec& exec, Range range, const std::byte* slot) const {
    for_each_piece(exec, range, [&](size_t at, Range piece) {
      alignas(64) std::byte whole[kMaxGroupBytes];
      std::byte* const to = target(piece, whole);
      arrays_.functions->decode(to, slot + at, piece.count);
      if (to == whole) deal_out(piece, whole);
    });
  }

  template <class Exec, class From, class To>
  void reduce_canonical(Exec& exec, Range range, From&& from, To&& to) const {
    note_sent(range.count, exec.world_size() - 1);
    const void** const inputs = exec.input_pointers();
    void** const outputs = exec.output_pointers();
    for_each_piece(exec, range, [&](size_t at, Range piece) {
      int num_outputs = 0;
      for (int rank = 0; rank < exec.world_size(); ++rank) {
        inputs[rank] = nullptr;
        if (rank == exec.rank()) continue;
        inputs[rank] = from(rank) + at;
        outputs[num_outputs++] = to(rank) + at;
      }
      ReduceTile tile;
      tile.inputs = inputs;
      tile.num_inputs = exec.world_size();
      tile.own_index = exec.rank();
      tile.wire_outputs = outputs;
      tile.num_wire_outputs = num_outputs;
      reduce(tile, piece);
    });
  }

  /// The call of a group of one rank.
  void reduce_alone(size_t count) const {
    const void* inputs[1] = {nullptr};
    ReduceTile tile;
    tile.inputs = inputs;
    tile.num_inputs = 1;
    tile.own_index = 0;
    cut({0, count}, 0, [&](size_t, Range piece) { reduce(tile, piece); });
  }

 private:
  static constexpr size_t kMaxGroupBytes = BlockLayout{128}.group_count() * sizeof(float);

  void note_sent(size_t count, int num_slots) const {
    if (arrays_.sent_bytes == nullptr) return;
    *arrays_.sent_bytes += layout_.wire_bytes(count) * static_cast<size_t>(num_slots);
  }

  /// f(where in the slot, elements of the arrays) for this lane's groups: all at once, or, in a list, one by one.
  template <class Exec, class F>
  void for_each_piece(Exec& exec, Range range, const F& f) const {
    exec.for_each_pack(layout_.num_blocks(range.count), [&](size_t first_block, size_t num_blocks) {
      const size_t first = first_block * layout_.block_count;
      const size_t count = std::min(num_blocks * layout_.block_count, range.count - first);
      cut({range.offset + first, count}, layout_.scale_offset(first_block), f);
    });
  }
  template <class F>
  void cut(Range range, size_t at, const F& f) const {
    const bool in_list = arrays_.in.spans != nullptr || arrays_.out.spans != nullptr;
    const size_t step = in_list ? layout_.group_count() : std::max<size_t>(range.count, 1);
    for (size_t done = 0; done < range.count; done += step, at += layout_.group_bytes()) {
      f(at, Range{range.offset + done, std::min(step, range.count - done)});
    }
  }

  void reduce(ReduceTile& tile, Range piece) const {
    alignas(64) std::byte gathered[kMaxGroupBytes];
    alignas(64) std::byte whole[kMaxGroupBytes];
    std::byte* const to = target(piece, whole);
    tile.own = source(piece, gathered);
    tile.out = to;
    tile.count = piece.count;
    tile.pre = arrays_.pre;
    tile.post = arrays_.post;
    tile.round_own = true;
    tile.is_final = true;
    arrays_.functions->reduce(tile);
    if (to == whole) deal_out(piece, whole);
  }

  /// The elements of `piece` one after the other: where they lie, or copied to `gathered`.
  const std::byte* source(Range piece, std::byte* gathered) const {
    const std::byte* found = gathered;
    for_each_run(arrays_.in, piece, [&](size_t done, size_t n, const std::byte* from) {
      if (n == piece.count) {
        found = from;
      } else {
        std::memcpy(gathered + done * sizeof(float), from, n * sizeof(float));
      }
    });
    return found;
  }
  /// Where the elements of `piece` go one after the other; `whole`: they are to be dealt out.
  std::byte* target(Range piece, std::byte* whole) const {
    std::byte* found = whole;
    for_each_run(arrays_.out, piece, [&](size_t, size_t n, std::byte* to) {
      if (n == piece.count) found = to;
    });
    return found;
  }
  void deal_out(Range piece, const std::byte* whole) const {
    for_each_run(arrays_.out, piece, [&](size_t done, size_t n, std::byte* to) {
      std::memcpy(to, whole + done * sizeof(float), n * sizeof(float));
    });
  }
  template <class Byte, class F>
  static void for_each_run(const Elements<Byte>& elements, Range piece, const F& f) {
    elements.for_each_run(piece.offset, piece.count, sizeof(float), f);
  }

  const HostKernels& arrays_;
  const BlockLayout layout_;
};

}  // namespace dcomm
