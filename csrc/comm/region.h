// Regions: memory of users' arrays that every rank of a communicator maps. Floor: comm.
//
// A region is an array of every rank, all of one length: made for the purpose, one that the caller had (adopted), of
// which only whole pages can be mapped by others, or a range of addresses that has been set aside (reserved), to whose
// parts each rank gives memory when it needs some, by itself. It belongs to whoever holds it (the array in Python, an
// operation that uses it); the communicator only knows where regions lie, to recognise an array that it is given. So an
// array outlives its communicator, and a rank that drops its own leaves the others' memory and mappings as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "launch/host_launch.h"
#include "memory/adopted.h"
#include "memory/reserved.h"
#include "memory/windows.h"

namespace dcomm {

struct Region {
  uint32_t number = 0;        // what all ranks call it, from 1
  std::byte* data = nullptr;  // this rank's array
  size_t nbytes = 0;
  Span reach;  // what all ranks have mapped of it, the same on every rank
  std::shared_ptr<const Windows> windows;
  std::shared_ptr<AdoptedWindows> adopted;    // the same, where the caller had the array
  std::shared_ptr<ReservedWindows> reserved;  // the same, where memory comes later
};

/// A communicator's regions by address. One thread at a time; regions may be dropped by any thread meanwhile.
class RegionTable {
 public:
  bool empty() const { return regions_.empty(); }
  void add(const std::shared_ptr<Region>& region);
  void remove(const Region& region);
  /// Where [address, address + nbytes) lies; without windows where it is not all in one region. anywhere: also in a
  /// reserved one.
  SharedArray find(const void* address, size_t nbytes, bool anywhere = false);
  /// Finds out whether all ranks reach the arrays of an all-reduce that could be done where they lie. Not in a reserved
  /// region, where every rank has its array elsewhere.
  void look_up(CollectiveCall& call);
  /// Finds out whether the peers reach the input of a collective that lends_input_only, and may read it until the end.
  void look_up_input(CollectiveCall& call, int rank, int world_size);

 private:
  struct Entry {
    uintptr_t end = 0;
    std::weak_ptr<Region> region;
  };
  std::map<uintptr_t, Entry> regions_;  // by beginning; one that is gone may stay until it is looked at
};

/// The elements of an all-reduce that all ranks reach in both arrays.
Range reach_of(const CollectiveCall& call);
/// Whether enough of both arrays is reached by all.
bool can_go_direct(const CollectiveCall& call);

/// An all-reduce of arrays that are reached in part, as two: the elements beside whole pages are copied together.
class ReachedInPart {
 public:
  ReachedInPart(const CollectiveCall& call, Range reach);
  ReachedInPart(const ReachedInPart&) = delete;
  ReachedInPart& operator=(const ReachedInPart&) = delete;
  /// After `ordinary`: its results to where they belong.
  void copy_out() const;

  CollectiveCall ordinary;  // of the copy; its algo is the caller's to choose
  CollectiveCall direct;    // of what is reached

 private:
  std::vector<std::byte> rim_;
  size_t head_bytes_ = 0;
  std::byte* head_out_ = nullptr;
  std::byte* tail_out_ = nullptr;
};

}  // namespace dcomm
