// The table of regions. Floor: comm.
#include "comm/region.h"

#include <algorithm>

namespace dcomm {

void RegionTable::add(const std::shared_ptr<Region>& region) {
  std::erase_if(regions_, [](const auto& entry) { return entry.second.region.expired(); });
  const auto begin = reinterpret_cast<uintptr_t>(region->data);
  regions_[begin] = {begin + region->nbytes, region};
}

void RegionTable::remove(const Region& region) {
  std::erase_if(regions_, [&](const auto& entry) { return entry.second.region.lock().get() == &region; });
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
  const size_t offset = begin - found->first;
  const auto from_here = [&](size_t place) { return std::clamp(place, offset, offset + nbytes) - offset; };
  return {region->windows, region->number, offset, {from_here(region->reach.begin), from_here(region->reach.end)}};
}

}  // namespace dcomm
