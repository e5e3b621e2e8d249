// Operations with real data, what they must give, and the comparison, bit by bit.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "fp8_reference.h"
#include "random.h"
#include "reference.h"
#include "sanitized.h"
#include "thread_ranks.h"

namespace dcomm::checks {

/// An array at any byte address, between guards that nobody may touch.
class GuardedArray {
 public:
  GuardedArray(size_t num_bytes, size_t misalignment)
      : bytes_(num_bytes + 2 * kGuardBytes + misalignment, kGuard),
        begin_(kGuardBytes + misalignment),
        num_bytes_(num_bytes) {}

  unsigned char* data() { return bytes_.data() + begin_; }
  Bytes copy() const {
    const auto begin = bytes_.begin() + static_cast<std::ptrdiff_t>(begin_);
    return Bytes(begin, begin + static_cast<std::ptrdiff_t>(num_bytes_));
  }
  void fill(const Bytes& from) {
    if (!from.empty()) std::memcpy(data(), from.data(), from.size());
  }
  bool guards_intact() const {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if ((i < begin_ || i >= begin_ + num_bytes_) && bytes_[i] != kGuard) return false;
    }
    return true;
  }

  /// What an array holds before it is filled, too.
  static constexpr unsigned char kGuard = 0xa5;

 private:
  static constexpr size_t kGuardBytes = 64;
  Bytes bytes_;
  size_t begin_;
  size_t num_bytes_;
};

namespace detail {

template <class T>
void put(Bytes& to, size_t i, T value) {
  std::memcpy(&to[i * sizeof(T)], &value, sizeof(T));
}

/// Mostly numbers whose sums round, some that overflow a half, some special ones.
inline double random_number(Random& random) {
  const double unit = static_cast<double>(random.next() >> 11) * 0x1p-53 - 0.5;
  switch (random.below(64)) {
    case 0:
      return random.coin() ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity();
    case 1:
      return std::numeric_limits<double>::quiet_NaN();
    case 2:
      return random.coin() ? 0.0 : -0.0;
    case 3:
      return std::ldexp(unit, -20);  // a denormal float16
    case 4:
      return std::ldexp(unit, 17);  // float16 overflows, its mean may not
    default:
      return std::ldexp(unit, static_cast<int>(random.below(8)) - 3);
  }
}

}  // namespace detail

inline Bytes random_array(Random& random, DType dtype, size_t count) {
  if (is_complex(dtype)) return random_array(random, component_of(dtype), 2 * count);
  Bytes array(count * dtype_bytes(dtype));
  for (size_t i = 0; i < count; ++i) {
    switch (dtype) {
      case DType::kF32:
        detail::put(array, i, static_cast<float>(detail::random_number(random)));
        break;
      case DType::kF64:
        detail::put(array, i, detail::random_number(random));
        break;
      case DType::kI8:
      case DType::kU8:
        detail::put(array, i, static_cast<uint8_t>(random.next()));
        break;
      case DType::kBool:
        detail::put(array, i, random.coin());
        break;
      case DType::kI32:
        detail::put(array, i, static_cast<uint32_t>(random.next()));
        break;
      case DType::kI64:
        detail::put(array, i, random.next());
        break;
      case DType::kF16:
      case DType::kBF16: {
        const float value = round_to_half(static_cast<float>(detail::random_number(random)), dtype);
        detail::put(array, i, half_bits(value, dtype));
        break;
      }
      case DType::kC64:
      case DType::kC128:
        break;  // above
      case DType::kF8Block32:
      case DType::kF8Block128:
        break;  // no array's
    }
  }
  return array;
}

/// A sequence of operations for ThreadRanks::run.
class Workload {
 public:
  explicit Workload(int world_size) : world_size_(world_size) {}
  int world_size() const { return world_size_; }

  void add_all_reduce(Random& random, const ReduceCase& what, size_t count, bool in_place = false,
                      bool misaligned = false) {
    std::vector<Bytes> inputs;
    for (int rank = 0; rank < world_size_; ++rank) inputs.push_back(random_array(random, what.dtype, count));
    Bytes expected = reference_all_reduce(what, inputs, count);
    add_all_reduce_of(random, what, inputs, std::move(expected), count, in_place, misaligned);
  }

  void add_all_reduce_of(Random& random, const ReduceCase& what, const std::vector<Bytes>& inputs, Bytes expected,
                         size_t count, bool in_place, bool misaligned) {
    Job& job = new_job(Collective::kAllReduce, what, count);
    job.expected.assign(inputs.size(), std::move(expected));
    for (int rank = 0; rank < world_size_; ++rank) {
      const Bytes& input = inputs[static_cast<size_t>(rank)];
      job.in.push_back(new_array(random, input.size(), misaligned));
      job.in.back()->fill(input);
      job.out.push_back(in_place ? job.in.back() : new_array(random, input.size(), misaligned));
      if (!in_place) job.inputs.push_back(input);
    }
  }

  void add_broadcast(Random& random, DType dtype, size_t count, int root) {
    Job& job = new_job(Collective::kBroadcast, {dtype, dtype, ReduceOp::kSum, Algo::kFlat}, count);
    job.call.root = root;
    job.expected.assign(static_cast<size_t>(world_size_), random_array(random, dtype, count));
    for (int rank = 0; rank < world_size_; ++rank) {
      job.in.push_back(new_array(random, job.expected[0].size(), true));
      if (rank == root) job.in.back()->fill(job.expected[0]);
      job.out.push_back(job.in.back());
    }
  }

  /// One rank's part in a collective whose ranks have different arrays.
  struct Part {
    Bytes in;               // what `in` holds; in place: the whole array, of which it is a part
    Bytes expected;         // what `out`, or in place the whole array, must hold in the end
    bool in_place = false;  // one array for both
    size_t in_begin = 0;    // in bytes, in place
    size_t out_begin = 0;
    std::shared_ptr<const BlockLengths> lengths;
  };

  void add_parts(Random& random, Collective collective, const ReduceCase& what, size_t count, int root,
                 const std::vector<Part>& parts, bool misaligned) {
    Job& job = new_job(collective, what, count);
    job.call.root = root;
    for (const Part& part : parts) {
      job.in.push_back(new_array(random, part.in.size(), misaligned));
      job.in.back()->fill(part.in);
      job.out.push_back(part.in_place ? job.in.back() : new_array(random, part.expected.size(), misaligned));
      job.expected.push_back(part.expected);
    }
    job.parts = parts;
  }

  void add_barrier() { new_job(Collective::kBarrier, {DType::kF32, DType::kF32, ReduceOp::kSum, Algo::kFlat}, 0); }

  /// [operation][rank]
  std::vector<std::vector<RankCall>> calls() const {
    std::vector<std::vector<RankCall>> result;
    for (const Job& job : jobs_) {
      std::vector<RankCall> calls(static_cast<size_t>(world_size_), job.call);
      for (size_t rank = 0; rank < job.in.size(); ++rank) {
        calls[rank].in = job.in[rank]->data();
        calls[rank].out = job.out[rank]->data();
        if (job.parts.empty()) continue;
        calls[rank].in = job.in[rank]->data() + job.parts[rank].in_begin;
        calls[rank].out = job.out[rank]->data() + job.parts[rank].out_begin;
        calls[rank].lengths = job.parts[rank].lengths;
      }
      if (lends_input_only(job.call.collective) && job.call.algo != Algo::kFlat) {
        lend_inputs(calls, result.size());
      } else if (job.call.algo == Algo::kDirect) {
        share_arrays(calls);
      }
      result.push_back(std::move(calls));
    }
    return result;
  }

  /// The first thing that is not as it must be, or an empty string.
  std::string problem() const {
    for (size_t i = 0; i < jobs_.size(); ++i) {
      const Job& job = jobs_[i];
      for (size_t rank = 0; rank < job.out.size(); ++rank) {
        const Bytes result = job.out[rank]->copy();
        std::string what;
        if (result != job.expected[rank]) what = first_difference(job, rank, result);
        if (!job.in[rank]->guards_intact() || !job.out[rank]->guards_intact()) what = "wrote outside the array";
        if (!job.inputs.empty() && job.in[rank]->copy() != job.inputs[rank]) what = "changed its input";
        const bool has_input = !job.parts.empty() && !job.parts[rank].in_place;
        if (has_input && job.in[rank]->copy() != job.parts[rank].in) what = "changed its input";
        if (what.empty()) continue;
        return what + ": operation " + std::to_string(i) + " rank " + std::to_string(rank) + " " +
               collective_name(job.call.collective) + " " + algo_name(job.call.algo) + " " +
               dtype_name(job.call.dtype) + " wire " + dtype_name(job.call.wire) + " " + reduce_op_name(job.call.op) +
               " count " + std::to_string(job.call.count);
      }
    }
    return "";
  }

  /// The result of operation `i` on `rank`.
  Bytes result(size_t i, int rank) const { return jobs_[i].out[static_cast<size_t>(rank)]->copy(); }

 private:
  struct Job {
    RankCall call;
    std::vector<std::shared_ptr<GuardedArray>> in;   // by rank
    std::vector<std::shared_ptr<GuardedArray>> out;  // the same as `in` where in place
    std::vector<Bytes> inputs;                       // out of place: what `in` must still hold
    std::vector<Bytes> expected;                     // by rank: all of `out`
    std::vector<Part> parts;                         // of add_parts
  };

  Job& new_job(Collective collective, const ReduceCase& what, size_t count) {
    Job job;
    const ReduceCase lowered = in_components(what);  // as a communicator hands it to the executor
    job.call.collective = collective;
    job.call.algo = lowered.algo;
    job.call.dtype = lowered.dtype;
    job.call.wire = lowered.wire;
    job.call.op = lowered.op;
    job.call.count = is_complex(what.dtype) ? 2 * count : count;
    jobs_.push_back(std::move(job));
    return jobs_.back();
  }

  static std::shared_ptr<GuardedArray> new_array(Random& random, size_t num_bytes, bool misaligned) {
    return std::make_shared<GuardedArray>(num_bytes, misaligned ? random.below(17) : 0);
  }

  static std::string first_difference(const Job& job, size_t rank, const Bytes& result) {
    size_t at = 0;
    while (result[at] == job.expected[rank][at]) ++at;
    return "element " + std::to_string(at / dtype_bytes(job.call.dtype)) + " is wrong";
  }

  int world_size_;
  std::vector<Job> jobs_;
};

inline std::string describe(const GroupConfig& config) {
  return std::string(config.placement == PlacementKind::kPush ? "push" : "bounce") +
         " n=" + std::to_string(config.world_size) + " depth=" + std::to_string(config.depth) +
         " channels=" + std::to_string(config.num_channels) + " lanes=" + std::to_string(config.num_lanes) +
         " slot_bytes=" + std::to_string(config.slot_bytes);
}

/// Runs the workload; returns what went wrong, or an empty string.
inline std::string run_workload(const GroupConfig& config, const Workload& workload) {
  ThreadRanks ranks(config);
  const std::vector<Outcome> outcomes = ranks.run(workload.calls());
  for (size_t rank = 0; rank < outcomes.size(); ++rank) {
    const dcomm::Failure& failure = outcomes[rank].failure;
    if (failure.code == ErrorCode::kOk) continue;
    return "rank " + std::to_string(rank) + " failed, code " + std::to_string(static_cast<int>(failure.code)) +
           " culprit " + std::to_string(failure.culprit) + "; " + describe(config);
  }
  const std::string problem = workload.problem();
  return problem.empty() ? "" : problem + "; " + describe(config);
}

}  // namespace dcomm::checks
