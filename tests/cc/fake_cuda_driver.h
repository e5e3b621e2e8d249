// A driver of host memory: a memfd stands for memory on a GPU, mmap for its mapping. It notes what is alive, keeps the
// rules of the real one (sizes in granules, access before use) and can refuse any of its calls.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "check.h"
#include "memory/cuda_driver.h"

namespace dcomm::checks {

/// One check at a time uses it.
class FakeCudaDriver {
 public:
  static constexpr size_t kGrain = size_t{64} << 10;
  static constexpr int kRefused = 999;

  FakeCudaDriver() { current() = this; }
  ~FakeCudaDriver() { current() = nullptr; }
  FakeCudaDriver(const FakeCudaDriver&) = delete;
  FakeCudaDriver& operator=(const FakeCudaDriver&) = delete;

  /// The call that fails, counted from 0; -1: none.
  int fails_at = -1;
  int result = kRefused;
  std::vector<std::string> log;

  int num_calls() const { return num_calls_; }
  /// Memory, addresses and mappings that exist.
  size_t num_alive() const {
    return memories_.size() + reserved_.size() + mapped_.size() + allocated_.size() + opened_.size();
  }

  static const CudaDriver& table() {
    static const CudaDriver driver = {
        [](int, size_t* num_bytes) { return self().granularity(num_bytes); },
        [](int, size_t num_bytes, uint64_t* memory) { return self().create(num_bytes, memory); },
        [](uint64_t memory) { return self().release(memory); },
        [](uint64_t memory, int* descriptor) { return self().export_descriptor(memory, descriptor); },
        [](int descriptor, uint64_t* memory) { return self().import_descriptor(descriptor, memory); },
        [](size_t num_bytes, uintptr_t* address) { return self().reserve(num_bytes, address); },
        [](uintptr_t address, size_t num_bytes) { return self().unreserve(address, num_bytes); },
        [](uintptr_t address, size_t num_bytes, uint64_t memory) { return self().map(address, num_bytes, memory); },
        [](uintptr_t address, size_t num_bytes) { return self().unmap(address, num_bytes); },
        [](uintptr_t address, size_t num_bytes, int) { return self().allow(address, num_bytes); },
        [](size_t num_bytes, uintptr_t* address) { return self().allocate(num_bytes, address); },
        [](uintptr_t address) { return self().deallocate(address); },
        [](uintptr_t address, unsigned char* handle) { return self().ipc_export(address, handle); },
        [](const unsigned char* handle, uintptr_t* address) { return self().ipc_open(handle, address); },
        [](uintptr_t address) { return self().ipc_close(address); },
        [](uintptr_t address, size_t num_bytes) { return self().zero(address, num_bytes); },
        [](int) { return "the fake refuses"; },
    };
    return driver;
  }

 private:
  static FakeCudaDriver*& current() {
    static FakeCudaDriver* driver = nullptr;
    return driver;
  }
  static FakeCudaDriver& self() { return *current(); }

  bool refuses(const char* name) {
    log.push_back(name);
    return num_calls_++ == fails_at;
  }
  struct Allocation {
    int descriptor;
    size_t num_bytes;
  };
  struct IpcHandle {
    pid_t pid;
    int descriptor;
    size_t num_bytes;
  };
  static_assert(sizeof(IpcHandle) <= kCudaIpcBytes);

  static uintptr_t map_all(int descriptor, size_t num_bytes) {
    void* const start = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    EXPECT(start != MAP_FAILED);
    return reinterpret_cast<uintptr_t>(start);
  }
  static void* at(uintptr_t address) { return reinterpret_cast<void*>(address); }

  int granularity(size_t* num_bytes) {
    if (refuses("granularity")) return result;
    *num_bytes = kGrain;
    return 0;
  }
  int create(size_t num_bytes, uint64_t* memory) {
    if (refuses("create")) return result;
    EXPECT_EQ(num_bytes % kGrain, size_t{0});
    const int descriptor = memfd_create("fake_gpu", MFD_CLOEXEC);
    EXPECT(descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(num_bytes)) == 0);
    std::vector<unsigned char> garbage(num_bytes, 0xa5);  // as GPU memory is: not zeroed
    EXPECT(pwrite(descriptor, garbage.data(), num_bytes, 0) == static_cast<ssize_t>(num_bytes));
    return keep(descriptor, memory);
  }
  int import_descriptor(int descriptor, uint64_t* memory) {
    if (refuses("import")) return result;
    const int own = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    return own < 0 ? kRefused : keep(own, memory);
  }
  int keep(int descriptor, uint64_t* memory) {
    *memory = ++last_memory_;
    memories_[*memory] = descriptor;
    return 0;
  }
  int release(uint64_t memory) {
    log.push_back("release");
    EXPECT(memories_.count(memory) == 1);
    close(memories_[memory]);
    memories_.erase(memory);
    return 0;
  }
  int export_descriptor(uint64_t memory, int* descriptor) {
    if (refuses("export")) return result;
    *descriptor = fcntl(memories_.at(memory), F_DUPFD_CLOEXEC, 0);
    return 0;
  }
  int reserve(size_t num_bytes, uintptr_t* address) {
    if (refuses("reserve")) return result;
    void* const start = mmap(nullptr, num_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(start != MAP_FAILED);
    *address = reinterpret_cast<uintptr_t>(start);
    reserved_[*address] = num_bytes;
    return 0;
  }
  int unreserve(uintptr_t address, size_t num_bytes) {
    log.push_back("unreserve");
    EXPECT(reserved_.count(address) == 1 && reserved_[address] == num_bytes && mapped_.count(address) == 0);
    munmap(at(address), num_bytes);
    reserved_.erase(address);
    return 0;
  }
  int map(uintptr_t address, size_t num_bytes, uint64_t memory) {
    if (refuses("map")) return result;
    EXPECT(reserved_.count(address) == 1);
    EXPECT(mmap(at(address), num_bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, memories_.at(memory), 0) != MAP_FAILED);
    mapped_[address] = num_bytes;
    return 0;
  }
  int unmap(uintptr_t address, size_t num_bytes) {
    log.push_back("unmap");
    EXPECT(mapped_.count(address) == 1);
    EXPECT(mmap(at(address), num_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    mapped_.erase(address);
    return 0;
  }
  int allow(uintptr_t address, size_t num_bytes) {
    if (refuses("allow")) return result;
    EXPECT(mapped_.count(address) == 1);
    return mprotect(at(address), num_bytes, PROT_READ | PROT_WRITE);
  }
  int zero(uintptr_t address, size_t num_bytes) {
    if (refuses("zero")) return result;
    std::memset(at(address), 0, num_bytes);
    return 0;
  }

  int allocate(size_t num_bytes, uintptr_t* address) {
    if (refuses("allocate")) return result;
    const int descriptor = memfd_create("fake_gpu", MFD_CLOEXEC);
    EXPECT(descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(num_bytes)) == 0);
    *address = map_all(descriptor, num_bytes);
    std::memset(at(*address), 0xa5, num_bytes);
    allocated_[*address] = {descriptor, num_bytes};
    return 0;
  }
  int deallocate(uintptr_t address) {
    log.push_back("deallocate");
    EXPECT(allocated_.count(address) == 1);
    const Allocation freed = allocated_[address];
    for (const auto& [where, opened] : opened_) EXPECT(opened.descriptor != freed.descriptor);  // nobody has it open
    munmap(at(address), freed.num_bytes);
    close(freed.descriptor);
    allocated_.erase(address);
    return 0;
  }
  int ipc_export(uintptr_t address, unsigned char* handle) {
    if (refuses("ipc_export")) return result;
    EXPECT(allocated_.count(address) == 1);
    const IpcHandle written{getpid(), allocated_[address].descriptor, allocated_[address].num_bytes};
    std::memcpy(handle, &written, sizeof(written));
    return 0;
  }
  int ipc_open(const unsigned char* handle, uintptr_t* address) {
    if (refuses("ipc_open")) return result;
    IpcHandle read;
    std::memcpy(&read, handle, sizeof(read));
    const std::string path = "/proc/" + std::to_string(read.pid) + "/fd/" + std::to_string(read.descriptor);
    const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return kRefused;
    *address = map_all(descriptor, read.num_bytes);
    close(descriptor);
    opened_[*address] = {read.pid == getpid() ? read.descriptor : -1, read.num_bytes};
    return 0;
  }
  int ipc_close(uintptr_t address) {
    log.push_back("ipc_close");
    EXPECT(opened_.count(address) == 1);
    munmap(at(address), opened_[address].num_bytes);
    opened_.erase(address);
    return 0;
  }

  int num_calls_ = 0;
  uint64_t last_memory_ = 0;
  std::map<uint64_t, int> memories_;      // -> descriptor
  std::map<uintptr_t, size_t> reserved_;  // -> bytes
  std::map<uintptr_t, size_t> mapped_;
  std::map<uintptr_t, Allocation> allocated_;
  std::map<uintptr_t, Allocation> opened_;  // descriptor: the owner's, where that is this process
};

/// Of this process.
inline int count_descriptors() {
  int count = 0;
  for (int descriptor = 0; descriptor < 1024; ++descriptor) count += fcntl(descriptor, F_GETFD) >= 0;
  return count;
}

}  // namespace dcomm::checks
