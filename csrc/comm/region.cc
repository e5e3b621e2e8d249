// The table of regions, and what an all-reduce makes of them. Floor: comm.
#include "comm/region.h"

#include <algorithm>

namespace dcomm {

namespace {

/// Of an array that is not reached as a whole: a second operation for the rest costs as much as is gained here.
constexpr size_t kMinReachBytes = 32 * 1024;

}  // namespace

void RegionTable::add(const std::shared_ptr<Region>& region) {
  std::erase_if(regions_, [](const auto& entry) { return entry.second.region.expired(); });
  const auto begin = reinterpret_cast<uintptr_t>(region->data);
  regions_[begin] = {begin + region->nbytes, region};
}

void RegionTable::remove(const Region& region) {
  std::erase_if(regions_, [&](const auto& entry) { return entry.second.region.lock().get() == &region; });
}

SharedArray RegionTable::find(const void* address, size_t nbytes, bool anywhere) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  auto found = regions_.upper_bound(begin);
  if (found == regions_.begin()) return {};
  --found;
  const Entry& entry = found->second;
  if (begin >= entry.end || nbytes > entry.end - begin) return {};
  const std::shared_ptr<Region> region = entry.region.lock();
  if (region == nullptr) {  // other memory has taken its place
    regions_.erase(found);
    return {};
  }
  if (region->reserved != nullptr && !anywhere) return {};
  const size_t offset = begin - found->first;
  const auto from_here = [&](size_t place) { return std::clamp(place, offset, offset + nbytes) - offset; };
  return {region->windows, region->number, offset, {from_here(region->reach.begin), from_here(region->reach.end)}};
}

void RegionTable::look_up(CollectiveCall& call) {
  const bool may_be_direct = call.algo == Algo::kAuto || call.algo == Algo::kDirect;
  if (!may_be_direct || call.wire != call.dtype || call.op == ReduceOp::kPremulSum) return;
  const size_t nbytes = call.count * dtype_bytes(call.dtype);
  call.shared_in = find(call.in, nbytes);
  if (call.shared_in.windows == nullptr) return;
  call.shared_out = call.out == call.in ? call.shared_in : find(call.out, nbytes);
}

void RegionTable::look_up_input(CollectiveCall& call, int rank, int world_size) {
  if (call.wire != call.dtype || (reduces(call.collective) && call.op == ReduceOp::kPremulSum)) return;
  const size_t block = call.count * dtype_bytes(call.dtype);
  const size_t blocks = block * static_cast<size_t>(world_size);
  const bool has_blocks_in = call.collective == Collective::kReduceScatter;
  const auto* const in = static_cast<const std::byte*>(call.in);
  const auto* const out = static_cast<const std::byte*>(call.out);
  // What this rank writes, others must not be about to read: its own block is what no other touches.
  const std::byte* const whole = has_blocks_in ? in : out;
  const std::byte* const part = has_blocks_in ? out : in;
  const bool is_apart = part + block <= whole || whole + blocks <= part;
  if (!is_apart && part != whole + static_cast<size_t>(rank) * block) return;
  const size_t nbytes = has_blocks_in ? blocks : block;
  const SharedArray found = find(in, nbytes, true);
  if (found.windows != nullptr && found.reach.begin == 0 && found.reach.end == nbytes) call.shared_in = found;
}

Range reach_of(const CollectiveCall& call) {
  const size_t width = dtype_bytes(call.dtype);
  const size_t begin = ceil_div(std::max(call.shared_in.reach.begin, call.shared_out.reach.begin), width);
  const size_t end = std::min(call.shared_in.reach.end, call.shared_out.reach.end) / width;
  return {begin, end > begin ? end - begin : 0};
}

bool can_go_direct(const CollectiveCall& call) {
  if (call.shared_in.windows == nullptr || call.shared_out.windows == nullptr) return false;
  const Range reach = reach_of(call);
  const size_t least_bytes = call.algo == Algo::kDirect ? 1 : kMinReachBytes;
  return reach.count == call.count || reach.count * dtype_bytes(call.dtype) >= least_bytes;
}

ReachedInPart::ReachedInPart(const CollectiveCall& call, Range reach) : ordinary(call), direct(call) {
  const size_t width = dtype_bytes(call.dtype);
  head_bytes_ = reach.offset * width;
  const size_t tail_offset = head_bytes_ + reach.count * width;
  const size_t tail_bytes = call.count * width - tail_offset;
  const auto* const in = static_cast<const std::byte*>(call.in);
  head_out_ = static_cast<std::byte*>(call.out);
  tail_out_ = head_out_ + tail_offset;
  rim_.resize(head_bytes_ + tail_bytes);
  std::copy_n(in, head_bytes_, rim_.data());
  std::copy_n(in + tail_offset, tail_bytes, rim_.data() + head_bytes_);

  ordinary.in = ordinary.out = rim_.data();
  ordinary.count = call.count - reach.count;
  ordinary.shared_in = ordinary.shared_out = {};
  direct.in = in + head_bytes_;
  direct.out = head_out_ + head_bytes_;
  direct.count = reach.count;
  direct.shared_in.offset += head_bytes_;
  direct.shared_out.offset += head_bytes_;
}

void ReachedInPart::copy_out() const {
  std::copy_n(rim_.data(), head_bytes_, head_out_);
  std::copy_n(rim_.data() + head_bytes_, rim_.size() - head_bytes_, tail_out_);
}

}  // namespace dcomm
