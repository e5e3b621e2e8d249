#include "launch/host_pack.h"

#include "base/error.h"
#include "exec/float_environment.h"
#include "schedule/partition.h"

namespace dcomm {

namespace {

/// Elements from one dtype to another, scaled.
class Converter {
 public:
  Converter(DType from, DType to, double scale, const KernelTable& table)
      : from_bytes_(dtype_bytes(component_of(from))), to_bytes_(dtype_bytes(component_of(to))), scale_{scale, true} {
    const bool widens = is_half(from) && to == DType::kF32;
    DCOMM_CHECK(from == to || widens || (from == DType::kF32 && is_half(to)), ErrorCode::kInvalidArgument, "got ",
                dtype_name(from), " to be stored as ", dtype_name(to),
                ": expected equal dtypes, or float32 and float16 or bfloat16; convert one of them first");
    DCOMM_CHECK(scale == 1.0 || is_floating(from) || is_complex(from), ErrorCode::kInvalidArgument, "scale=", scale,
                " with ", dtype_name(from), " arrays: expected 1.0; only floats and complex numbers are scaled");
    const DType type = component_of(to);
    if (widens) widening_ = table.find(to, from, ReduceOp::kSum);
    if (!widens) encoding_ = table.find(component_of(from), type, ReduceOp::kSum);
    if (scale != 1.0 && (widens || from == to)) scaling_ = table.find(type, type, ReduceOp::kSum);
  }

  size_t from_bytes() const { return from_bytes_; }
  size_t to_bytes() const { return to_bytes_; }

  void operator()(std::byte* to, const std::byte* from, size_t count) const {
    if (widening_ == nullptr) {
      if (scaling_ != nullptr) return scale(to, from, count);
      return encoding_->encode(to, from, count, scale_);
    }
    if (scaling_ == nullptr) return widen(to, from, count);
    for (size_t done = 0; done < count; done += kBlock) {
      const size_t n = min_size(kBlock, count - done);
      std::byte* const block = to + done * to_bytes_;
      widening_->decode(block, from + done * from_bytes_, n);
      scale(block, block, n);
    }
  }

 private:
  static constexpr size_t kBlock = 4096;  // elements; what was widened is in L1 when it is scaled

  // Both are sums of one term: what is final has canonical NaNs.

  void widen(std::byte* to, const std::byte* from, size_t count) const {
    const void* const inputs[1] = {from};
    ReduceTile tile;
    tile.inputs = inputs;
    tile.num_inputs = 1;
    tile.out = to;
    tile.count = count;
    tile.is_final = true;
    widening_->reduce(tile);
  }

  void scale(std::byte* to, const std::byte* from, size_t count) const {
    const void* const inputs[1] = {nullptr};
    ReduceTile tile;
    tile.inputs = inputs;
    tile.num_inputs = 1;
    tile.own_index = 0;
    tile.own = from;
    tile.out = to;
    tile.count = count;
    tile.pre = scale_;
    tile.is_final = true;
    scaling_->reduce(tile);
  }

  const size_t from_bytes_;
  const size_t to_bytes_;
  const Scale scale_;
  const TileFunctions* encoding_ = nullptr;
  const TileFunctions* widening_ = nullptr;
  const TileFunctions* scaling_ = nullptr;  // to the dtype that it has already
};

size_t num_components(const ChunkTable& arrays) { return arrays.count() * (is_complex(arrays.dtype()) ? 2 : 1); }

}  // namespace

void pack_arrays(const ChunkTable& arrays, void* to, DType to_dtype, double scale, const KernelTable& table) {
  const FloatEnvironment environment;
  const Converter convert(arrays.dtype(), to_dtype, scale, table);
  auto* const target = static_cast<std::byte*>(to);
  Loader(arrays.spans())
      .for_each_run(0, num_components(arrays), convert.from_bytes(), [&](size_t done, size_t n, const std::byte* from) {
        convert(target + done * convert.to_bytes(), from, n);
      });
}

void unpack_arrays(const void* from, DType from_dtype, const ChunkTable& arrays, double scale,
                   const KernelTable& table) {
  const FloatEnvironment environment;
  const Converter convert(from_dtype, arrays.dtype(), scale, table);
  const auto* const source = static_cast<const std::byte*>(from);
  Storer(arrays.spans())
      .for_each_run(0, num_components(arrays), convert.to_bytes(), [&](size_t done, size_t n, std::byte* to) {
        convert(to, source + done * convert.from_bytes(), n);
      });
}

}  // namespace dcomm
