// Regions: memory of users' arrays that every rank of a communicator maps. Floor: comm.
//
// A region is an array of every rank, all of one length: made for the purpose, or one that the caller had (adopted), of
// which only whole pages can be mapped by others. It belongs to whoever holds it (the array in Python, an
// operation that uses it); the communicator only knows where regions lie, to recognise an array that it is given. So an
// array outlives its communicator, and a rank that drops its own leaves the others' memory and mappings as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "launch/host_launch.h"
#include "memory/adopted.h"
#include "memory/windows.h"

namespace dcomm {

struct Region {
  uint32_t number = 0;        // what all ranks call it, from 1
  std::byte* data = nullptr;  // this rank's array
  size_t nbytes = 0;
  Span reach;  // what all ranks have mapped of it, the same on every rank
  std::shared_ptr<const Windows> windows;
  std::shared_ptr<AdoptedWindows> adopted;  // the same, where the caller had the array
};

/// A communicator's regions by address. One thread at a time; regions may be dropped by any thread meanwhile.
class RegionTable {
 public:
  bool empty() const { return regions_.empty(); }
  void add(const std::shared_ptr<Region>& region);
  void remove(const Region& region);
  /// Where [address, address + nbytes) lies; without windows where it is not all in one region.
  SharedArray find(const void* address, size_t nbytes);

 private:
  struct Entry {
    uintptr_t end = 0;
    std::weak_ptr<Region> region;
  };
  std::map<uintptr_t, Entry> regions_;  // by beginning; one that is gone may stay until it is looked at
};

}  // namespace dcomm
