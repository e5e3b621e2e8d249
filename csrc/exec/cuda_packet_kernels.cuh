// The device's Kernels for one_shot over packets: 12 bytes of data in each 16, taken as they arrive. Floor: exec.
//
// Thread i of a block sends the i-th packet of a segment to every peer, waits for theirs, and sums. A packet holds
// three elements, or six of two bytes, so that user arrays are read and written one element at a time: a message that
// travels like this is small.
// Source: the LL protocol of NCCL, with one 16-byte access in place of two of 8 (exec/cuda_intrinsics.cuh).
#pragma once

#include "exec/cuda_packs.cuh"

namespace dcomm {

template <class User, class Wire, int kRanks, bool kDividesTerms>
class CudaPacketKernels : public CudaPacks<User, Wire, kRanks, kDividesTerms> {
  using Base = CudaPacks<User, Wire, kRanks, kDividesTerms>;
  static constexpr int kWords = 3;
  static constexpr int kCount = kWords * Wire::kPerWord;

 public:
  using Base::Base;

  template <class Exec>
  DCOMM_DEVICE void put_packets(Exec& exec, uint64_t seq, Range range) const {
    for_each_packet(exec, range, [&](uint32_t index, uint32_t first) {
      const Words own = own_words(range, first);
      DCOMM_ROLLED
      for (int i = 1; i < exec.world_size(); ++i) {
        const int peer = exec.rank() + i;
        exec.put_packet(peer < exec.world_size() ? peer : peer - exec.world_size(), seq, index, own.word);
      }
      return true;
    });
  }

  /// The same thread handles the same elements as in put_packets: out may be in.
  template <class Exec>
  DCOMM_DEVICE bool reduce_packets(Exec& exec, uint64_t seq, Range range) const {
    const bool arrived = for_each_packet(exec, range, [&](uint32_t index, uint32_t first) {
      const Words own = own_words(range, first);
      float sum[kCount];
      bool complete = true;
      if constexpr (kRanks == 0) {
        complete = sum_any(exec, own, seq, index, sum);
      } else {
        complete = sum_unrolled(exec, own, seq, index, sum);
      }
      if (complete) store_result(range, first, sum);
      return complete;
    });
    return !exec.any(!arrived);
  }

 private:
  struct Words {
    uint32_t word[kWords];
  };

  /// f(packet, its first element) for this thread's packets until one returns false; an empty range is one packet.
  template <class Exec, class F>
  DCOMM_DEVICE static bool for_each_packet(const Exec& exec, Range range, const F& f) {
    const uint32_t count = static_cast<uint32_t>(range.count);
    const uint32_t num_packets = count == 0 ? 1 : (count + kCount - 1) / kCount;
    DCOMM_ROLLED
    for (uint32_t i = static_cast<uint32_t>(exec.lane()); i < num_packets; i += exec.num_lanes()) {
      if (!f(i, i * kCount)) return false;
    }
    return true;
  }

  DCOMM_DEVICE static void widen(const uint32_t* words, float (&value)[kCount]) {
    DCOMM_UNROLL
    for (int w = 0; w < kWords; ++w) Wire::widen(words[w], value + w * Wire::kPerWord);
  }

  /// My terms of elements [first, first + kCount), zeros after the range's end.
  DCOMM_DEVICE Words own_words(Range range, uint32_t first) const {
    const std::byte* const from = this->source(range);
    Words own;
    DCOMM_UNROLL
    for (int w = 0; w < kWords; ++w) {
      own.word[w] = 0;
      DCOMM_UNROLL
      for (int k = 0; k < Wire::kPerWord; ++k) {
        const uint32_t at = first + static_cast<uint32_t>(w * Wire::kPerWord + k);
        if (at >= range.count) continue;
        const auto term = Base::template own_term<1>(CudaBlock<User, 1>::load(from, at));
        own.word[w] |= static_cast<uint32_t>(term.element) << (16 * k);
      }
    }
    return own;
  }

  DCOMM_DEVICE void store_result(Range range, uint32_t first, float (&sum)[kCount]) const {
    std::byte* const to = this->target(range);
    DCOMM_UNROLL
    for (int k = 0; k < kCount; ++k) {
      const uint32_t at = first + static_cast<uint32_t>(k);
      if (at >= range.count) continue;
      float element[1] = {sum[k]};
      Base::template to_user<1>(this->template finished<1>(element)).store(to, at);
    }
  }

  /// All packets are read before the first is waited for.
  template <class Exec>
  DCOMM_DEVICE static bool sum_unrolled(const Exec& exec, const Words& own, uint64_t seq, uint32_t index,
                                        float (&sum)[kCount]) {
    gpu::FlaggedPacket others[kRanks - 1];
    DCOMM_UNROLL
    for (int k = 1; k < kRanks; ++k) others[k - 1] = exec.peek_packet(exec.rank() ^ k, seq, index);
    bool complete = true;
    DCOMM_UNROLL
    for (int k = 1; k < kRanks; ++k) {
      complete = complete && exec.wait_packet(others[k - 1], exec.rank() ^ k, seq, index);
    }
    // As in CudaReduceKernels: position p xor rank has the same bits.
    sum_balanced<0, kRanks>(
        sum, [&](int k, float (&value)[kCount]) { widen(k == 0 ? own.word : others[k - 1].words, value); });
    return complete;
  }

  template <class Exec>
  DCOMM_DEVICE static bool sum_any(const Exec& exec, const Words& own, uint64_t seq, uint32_t index,
                                   float (&sum)[kCount]) {
    bool complete = true;
    sum_canonical<kCount>(
        exec.world_size(),
        [&](int rank, float (&value)[kCount]) {
          if (rank == exec.rank()) {
            widen(own.word, value);
            return;
          }
          gpu::FlaggedPacket other = exec.peek_packet(rank, seq, index);
          complete = complete && exec.wait_packet(other, rank, seq, index);
          widen(other.words, value);
        },
        sum);
    return complete;
  }
};

}  // namespace dcomm
