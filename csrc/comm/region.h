// Regions: memory for users' arrays that every rank of a communicator maps. Floor: comm.
//
// A region is a window of every rank, all of one length. It belongs to whoever holds it (the array in Python, an
// operation that uses it); the communicator only knows where regions lie, to recognise an array that it is given. So an
// array outlives its communicator, and a rank that drops its own leaves the others' memory and mappings as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "launch/host_launch.h"
#include "memory/windows.h"

namespace dcomm {

class Region {
 public:
  /// number: what all ranks call it, from 1.
  Region(uint32_t number, int rank, size_t nbytes, std::shared_ptr<const Windows> windows)
      : number_(number), rank_(rank), nbytes_(nbytes), windows_(std::move(windows)) {}

  uint32_t number() const { return number_; }
  /// This rank's memory: page-aligned, zeroed at creation.
  std::byte* data() const { return windows_->at(rank_); }
  size_t nbytes() const { return nbytes_; }
  const std::shared_ptr<const Windows>& windows() const { return windows_; }

 private:
  const uint32_t number_;
  const int rank_;
  const size_t nbytes_;
  const std::shared_ptr<const Windows> windows_;
};

/// A communicator's regions by address. One thread at a time; regions may be dropped by any thread meanwhile.
class RegionTable {
 public:
  bool empty() const { return regions_.empty(); }
  void add(const std::shared_ptr<Region>& region);
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
