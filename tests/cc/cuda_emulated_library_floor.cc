// launch_floor of the emulated _cuda.so: a task of a stream, and two threads that exchange a flag.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "cuda_emulated_library.h"
#include "cuda_emulated_streams.h"

namespace dcomm::checks::cuda {

namespace {

using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point start) {
  return std::max(1e-3, std::chrono::duration<double, std::micro>(Clock::now() - start).count());
}

bool wait_for(const std::atomic<int>& flag, int value, Clock::time_point deadline) {
  while (flag.load(std::memory_order_acquire) < value) {
    if (Clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace

int32_t launch_floor(int32_t device, double* empty_launch_us, double* round_trip_us, char* text, size_t num_bytes) {
  const Message message(text, num_bytes);
  if (device < 0 || device >= kNumDevices) {
    return message.say(kDcommCudaInvalid, "device %d of %d", device, kNumDevices);
  }
  static Stream& stream = *new Stream;  // its thread never ends
  auto start = Clock::now();
  stream.enqueue([] {});
  if (!stream.record()->wait_for(std::chrono::seconds(10))) return message.say(kDcommCudaTimeout, "an empty task");
  *empty_launch_us = us_since(start);

  constexpr int kNumTrips = 10;
  std::atomic<int> flags[2] = {0, 0};
  start = Clock::now();
  const auto deadline = start + std::chrono::seconds(10);
  std::thread other([&] {
    for (int trip = 1; trip <= kNumTrips && wait_for(flags[1], trip, deadline); ++trip) {
      flags[0].store(trip, std::memory_order_release);
    }
  });
  for (int trip = 1; trip <= kNumTrips; ++trip) {
    flags[1].store(trip, std::memory_order_release);
    if (!wait_for(flags[0], trip, deadline)) break;
  }
  other.join();
  if (flags[0].load() != kNumTrips) return message.say(kDcommCudaTimeout, "a flag between two threads did not come");
  *round_trip_us = us_since(start) / kNumTrips;
  return kDcommCudaOk;
}

}  // namespace dcomm::checks::cuda
