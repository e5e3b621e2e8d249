// The table of regions, and how the ranks of a communicator make one together. Floor: comm.
#include "comm/region.h"

#include <algorithm>

#include "comm/agreement.h"
#include "protocol/fingerprint.h"

namespace dcomm {

namespace {

constexpr uint64_t kRegionSalt = 0x726567696f6eull;  // the id of a split's child ends in another word
constexpr WindowPurpose kArrays{"array of comm.empty", "make smaller arrays, or drop some", true};

}  // namespace

void RegionTable::add(const std::shared_ptr<Region>& region) {
  std::erase_if(regions_, [](const auto& entry) { return entry.second.region.expired(); });
  const auto begin = reinterpret_cast<uintptr_t>(region->data());
  regions_[begin] = {begin + region->nbytes(), region};
}

SharedArray RegionTable::find(const void* address, size_t nbytes) {
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
  return {region->windows(), region->number(), begin - found->first};
}

std::shared_ptr<Region> Communicator::make_region(size_t nbytes, int64_t timeout_ns, InterruptCheck interrupted) {
  Agreement agreement(*this, {Collective::kEmpty, "array"}, timeout_ns, interrupted);
  const uint32_t number = ++num_regions_;
  struct Wish {
    uint64_t nbytes;
    uint64_t number;
  };
  const std::vector<Wish> wishes = agreement.gather(Wish{nbytes, number});
  for (size_t rank = 0; rank < wishes.size(); ++rank) {
    DCOMM_CHECK(wishes[rank].nbytes == wishes[0].nbytes, ErrorCode::kMismatch, "empty: rank 0 asks for ",
                wishes[0].nbytes, " bytes, rank ", rank, " for ", wishes[rank].nbytes,
                ": expected the same shape and dtype on every rank. This communicator is still usable");
  }
  std::vector<int> all(static_cast<size_t>(world_size()));
  std::iota(all.begin(), all.end(), 0);
  const uint64_t id = hash_mix(hash_mix(id_, number), kRegionSalt);
  std::shared_ptr<Region> region;
  const size_t window_bytes = std::max<size_t>(nbytes, 1);
  agreement.make_windows(id, all, rank(), window_bytes, kArrays, [&](std::shared_ptr<Windows> windows) {
    region = std::make_shared<Region>(number, rank(), nbytes, std::move(windows));
  });
  regions_.add(region);
  return region;
}

/// Finds out whether all ranks reach the call's arrays, and what it does with them could be done where they lie.
void Communicator::look_for_regions(CollectiveCall& call) {
  const bool may_be_direct = call.algo == Algo::kAuto || call.algo == Algo::kDirect;
  if (!may_be_direct || call.wire != call.dtype || call.op == ReduceOp::kPremulSum) return;
  const size_t nbytes = call.count * dtype_bytes(call.dtype);
  call.shared_in = regions_.find(call.in, nbytes);
  if (call.shared_in.windows == nullptr) return;
  call.shared_out = call.out == call.in ? call.shared_in : regions_.find(call.out, nbytes);
}

}  // namespace dcomm
