// Communicator::allocate, allocate_on_gpu, reserve and adopt: how the ranks of a communicator make a region together.
// Floor: comm.
#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "comm/agreement.h"
#include "comm/cuda_windows.h"
#include "comm/entry.h"
#include "comm/region.h"
#include "protocol/fingerprint.h"

namespace dcomm {

namespace {

constexpr uint64_t kRegionSalt = 0x726567696f6eull;  // the id of a split's child ends in another word
constexpr WindowPurpose kArrays{"array of comm.empty", "make smaller arrays, or drop some", true};
constexpr WindowPurpose kReserved{"memory for a group's tensors", "lower DCOMM_TENSOR_BYTES", true};

}  // namespace

/// One region as one rank takes part in making it.
class Communicator::RegionMaking {
 public:
  RegionMaking(Communicator& parent, Collective call, int64_t timeout_ns, InterruptCheck interrupted)
      : parent_(parent),
        call_(call),
        timeout_ns_(timeout_ns),
        interrupted_(interrupted),
        agreement_(parent, {call, "array"}, timeout_ns, interrupted),
        region_(std::make_shared<Region>()),
        all_(static_cast<size_t>(parent.world_size())) {
    region_->number = ++parent.num_regions_;
    id_ = hash_mix(hash_mix(parent.id_, region_->number), kRegionSalt);
    std::iota(all_.begin(), all_.end(), 0);
  }

  std::shared_ptr<Region> allocate(size_t nbytes) {
    gather({nbytes});
    const size_t window_bytes = std::max<size_t>(nbytes, 1);
    std::shared_ptr<const Windows> windows;
    if (is_among_processes()) {
      agreement_.exchange_windows(id_, all_, [&](const DescriptorExchange& exchange) {
        windows = make_memfd_windows(parent_.rank(), parent_.world_size(), window_bytes, exchange, parent_.force_shm_,
                                     kArrays);
      });
    } else {
      agreement_.share_parts(
          id_, parent_.rank() == 0,
          [&] { return ThreadParts{make_heap_windows(parent_.world_size(), window_bytes, kArrays), nullptr, nullptr}; },
          [&](const ThreadParts& parts, const auto&) { windows = parts.windows; });
    }
    return finish(windows->at(parent_.rank()), nbytes, {0, nbytes}, windows);
  }

  std::shared_ptr<Region> reserve(size_t nbytes) {
    gather({nbytes});
    DCOMM_CHECK(is_among_processes(), ErrorCode::kInvalidArgument,
                "reserve: expected ranks that are processes, more than one; threads have comm.empty");
    agreement_.exchange_windows(id_, all_, [&](const DescriptorExchange& exchange) {
      region_->reserved =
          make_reserved_windows(parent_.rank(), parent_.world_size(), nbytes, exchange, parent_.force_shm_, kReserved);
    });
    return finish(region_->reserved->at(parent_.rank()), nbytes, {0, nbytes}, region_->reserved);
  }

  /// Between processes the kind of windows is that of the communicator's own, which are made first if need be.
  std::shared_ptr<Region> allocate_on_gpu(int device, size_t nbytes) {
    const bool between_processes = parent_.serves_cuda_between_processes();
    Wish own{nbytes};
    own.place = between_processes ? kOnOwnGpu : device;
    std::optional<Error> own_error;
    try {
      cuda_device_count();  // there is a CUDA part, and a GPU
      parent_.check_cuda_device(device);
    } catch (const Error& error) {
      own_error = error;
      own.code = static_cast<int64_t>(error.code());
    }
    gather(own, own_error);
    const size_t window_bytes = std::max<size_t>(nbytes, 1);
    std::shared_ptr<const Windows> windows;
    if (between_processes) {
      parent_.open_cuda_processes(device, timeout_ns_, interrupted_);
      DcommCudaWindowOptions options{};
      options.device = device;
      options.kind = parent_.cuda_windows_are_kept_ ? kDcommCudaWindowIpc : kDcommCudaWindowVmm;
      options.num_bytes = window_bytes;
      const auto made = std::make_shared<CudaRegionWindows>(cuda_table(), device, parent_.rank(), parent_.world_size());
      agreement_.exchange_cuda_windows(id_, made->windows(), options, [&] { made->finish(window_bytes); });
      windows = made;
    } else {
      agreement_.share_parts(
          id_, parent_.rank() == 0,
          [&] {
            parent_.cuda_group().open(device);
            return ThreadParts{make_cuda_thread_windows(device, parent_.world_size(), window_bytes), nullptr, nullptr};
          },
          [&](const ThreadParts& parts, const auto&) { windows = parts.windows; });
    }
    return finish(windows->at(parent_.rank()), nbytes, {0, nbytes}, windows);
  }

  std::shared_ptr<Region> adopt(std::byte* array, size_t nbytes) {
    Wish own{nbytes};
    std::optional<Error> own_error;
    try {
      if (is_among_processes()) {
        const Span pages = whole_pages_of(array, nbytes);
        check_adoptable(array, pages);
        own.begin = pages.begin;
        own.end = pages.end;
      }
    } catch (const Error& error) {
      own_error = error;
      own.code = static_cast<int64_t>(error.code());
    }
    const std::vector<Wish> wishes = gather(own, own_error);
    Span reach{0, nbytes};
    std::vector<Span> pages;
    for (const Wish& wish : wishes) {
      pages.push_back({wish.begin, wish.end});
      reach = {std::max<size_t>(reach.begin, wish.begin), std::min<size_t>(reach.end, wish.end)};
    }
    if (reach.empty()) return finish(array, nbytes, {}, nullptr);
    agreement_.exchange_windows(id_, all_, [&](const DescriptorExchange& exchange) {
      region_->adopted = make_adopted_windows(parent_.rank(), array, pages, exchange, parent_.force_shm_);
    });
    return finish(array, nbytes, reach, region_->adopted);
  }

 private:
  static constexpr int64_t kOnHost = -1;
  static constexpr int64_t kOnOwnGpu = -2;

  /// What a rank asks for, and the part of its array that can be mapped by others.
  struct Wish {
    uint64_t nbytes = 0;
    int64_t place = kOnHost;  // or the number of a GPU that all share
    uint64_t begin = 0;
    uint64_t end = 0;
    int64_t code = 0;
  };

  /// Ranks that are threads reach all memory, but an array of the caller's may be gone while a rank that has failed
  /// later than its owner is still at it; shared pages stay as long as somebody has them mapped.
  bool is_among_processes() const { return parent_.mesh_ != nullptr && parent_.world_size() > 1; }

  static std::string text_of(int64_t place) {
    if (place == kOnHost) return "of the host";
    return place == kOnOwnGpu ? "of its GPU" : "of cuda:" + std::to_string(place);
  }

  std::vector<Wish> gather(const Wish& own, const std::optional<Error>& own_error = {}) {
    const std::vector<Wish> wishes = agreement_.gather(own);
    if (own_error) throw Error(*own_error);
    for (size_t rank = 0; rank < wishes.size(); ++rank) {
      DCOMM_CHECK(wishes[rank].code == 0, static_cast<ErrorCode>(wishes[rank].code), collective_name(call_), ": rank ",
                  rank, " refused its array; its own error says why. This communicator is still usable");
      DCOMM_CHECK(wishes[rank].place == wishes[0].place, ErrorCode::kMismatch, collective_name(call_),
                  ": rank 0 asks for memory ", text_of(wishes[0].place), ", rank ", rank, " for memory ",
                  text_of(wishes[rank].place),
                  ": expected the same device on every rank. This communicator is still "
                  "usable");
      DCOMM_CHECK(wishes[rank].nbytes == wishes[0].nbytes, ErrorCode::kMismatch, collective_name(call_),
                  ": rank 0 has an array of ", wishes[0].nbytes, " bytes, rank ", rank, " one of ", wishes[rank].nbytes,
                  ": expected the same shape and dtype on every rank. This communicator is still usable");
    }
    return wishes;
  }

  std::shared_ptr<Region> finish(std::byte* data, size_t nbytes, Span reach, std::shared_ptr<const Windows> windows) {
    region_->data = data;
    region_->nbytes = nbytes;
    region_->reach = reach;
    region_->windows = std::move(windows);
    if (region_->windows != nullptr) parent_.regions_.add(region_);
    return region_;
  }

  Communicator& parent_;
  const Collective call_;
  const int64_t timeout_ns_;
  const InterruptCheck interrupted_;
  Agreement agreement_;
  std::shared_ptr<Region> region_;
  std::vector<int> all_;
  uint64_t id_ = 0;
};

std::shared_ptr<Region> Communicator::allocate(size_t nbytes, int64_t timeout_ns, InterruptCheck interrupted) {
  const Entry entry(entered_);
  check_usable();
  return RegionMaking(*this, Collective::kEmpty, timeout_ns, interrupted).allocate(nbytes);
}

std::shared_ptr<Region> Communicator::reserve(size_t nbytes, int64_t timeout_ns, InterruptCheck interrupted) {
  const Entry entry(entered_);
  check_usable();
  return RegionMaking(*this, Collective::kEmpty, timeout_ns, interrupted).reserve(nbytes);
}

std::shared_ptr<Region> Communicator::allocate_on_gpu(int device, size_t nbytes, int64_t timeout_ns,
                                                      InterruptCheck interrupted) {
  const Entry entry(entered_);
  check_usable();
  return RegionMaking(*this, Collective::kEmpty, timeout_ns, interrupted).allocate_on_gpu(device, nbytes);
}

std::shared_ptr<Region> Communicator::adopt(void* array, size_t nbytes, int64_t timeout_ns,
                                            InterruptCheck interrupted) {
  const Entry entry(entered_);
  check_usable();
  return RegionMaking(*this, Collective::kRegister, timeout_ns, interrupted)
      .adopt(static_cast<std::byte*>(array), nbytes);
}

}  // namespace dcomm
