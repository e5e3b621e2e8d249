// What a launch and a flag cost on this GPU: the floor under an operation of a few bytes. Floor: launch.
//
// Measured with what the collectives are made of: a cooperative launch of their block size, replayed by a CUDA graph,
// and the executor's own loads and stores of flags. Every wait has a deadline.
#include <cuda_runtime.h>

#include <algorithm>
#include <iterator>

#include "exec/cuda_intrinsics.cuh"
#include "launch/cuda_status.cuh"

namespace dcomm {

namespace {

constexpr int kNumLaunches = 20;  // of a graph
constexpr int kNumReplays = 11;
constexpr int kNumEmptyBlocks = 8;  // eight ranks with a channel each
constexpr uint64_t kNumTrips = 1000;
constexpr uint64_t kTimeoutNs = 1'000'000'000;  // of all trips together, about 2 ms

struct alignas(128) Line {
  uint64_t word;
};

/// In device memory, zeroed.
struct PingPong {
  Line flags[2];    // flags[b] is written by block 1 - b
  Line elapsed_ns;  // of kNumTrips; 0: a flag did not come
};

DCOMM_DEVICE bool wait_for(const uint64_t* flag, uint64_t value, uint64_t deadline_ns) {
  for (uint32_t polls = 1; gpu::load_relaxed(flag) < value; ++polls) {
    if (polls % gpu::kPollsPerCheck == 0 && gpu::now_ns() > deadline_ns) return false;
  }
  gpu::load_acquire(flag);
  return true;
}

__global__ void __launch_bounds__(gpu::kBlockThreads, 1) k_empty() {}

/// Two blocks. The first trip, which waits for both to have started, is not counted.
__global__ void __launch_bounds__(gpu::kBlockThreads, 1) k_ping_pong(PingPong* words) {
  if (gpu::thread_index() != 0) return;
  const int own = static_cast<int>(blockIdx.x);
  uint64_t* const mine = &words->flags[own].word;
  uint64_t* const other = &words->flags[1 - own].word;
  uint64_t start = gpu::now_ns();
  const uint64_t deadline = start + kTimeoutNs;
  for (uint64_t trip = 1; trip <= kNumTrips + 1; ++trip) {
    if (own == 0) gpu::store_release(other, trip);
    if (!wait_for(mine, trip, deadline)) return;
    if (own == 1) gpu::store_release(other, trip);
    if (trip == 1) start = gpu::now_ns();
  }
  if (own == 0) words->elapsed_ns.word = gpu::now_ns() - start;
}

cudaError_t launch(const void* function, int num_blocks, void** arguments, cudaStream_t stream) {
  return cudaLaunchCooperativeKernel(function, dim3(static_cast<unsigned>(num_blocks)), dim3(gpu::kBlockThreads),
                                     arguments, 0, stream);
}

/// Whatever was made is freed.
struct FloorProbe {
  cudaStream_t stream = nullptr;
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replayed = nullptr;
  PingPong* words = nullptr;

  cudaError_t prepare() {
    cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaEventCreate(&start);
    if (error == cudaSuccess) error = cudaEventCreate(&stop);
    if (error == cudaSuccess) error = cudaMalloc(reinterpret_cast<void**>(&words), sizeof(PingPong));
    if (error == cudaSuccess) error = capture();
    return error;
  }
  cudaError_t capture() {
    void* no_arguments[] = {nullptr};
    cudaError_t error =
        launch(reinterpret_cast<const void*>(&k_empty), kNumEmptyBlocks, no_arguments, stream);  // loads
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    if (error == cudaSuccess) error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    if (error != cudaSuccess) return error;
    for (int i = 0; i < kNumLaunches && error == cudaSuccess; ++i) {
      error = launch(reinterpret_cast<const void*>(&k_empty), kNumEmptyBlocks, no_arguments, stream);
    }
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    if (error == cudaSuccess) error = ended;
    if (error == cudaSuccess) error = cudaGraphInstantiate(&replayed, graph, 0);
    return error;
  }
  cudaError_t replay(float* elapsed_ms) {
    cudaError_t error = cudaEventRecord(start, stream);
    if (error == cudaSuccess) error = cudaGraphLaunch(replayed, stream);
    if (error == cudaSuccess) error = cudaEventRecord(stop, stream);
    if (error == cudaSuccess) error = cudaEventSynchronize(stop);
    if (error == cudaSuccess) error = cudaEventElapsedTime(elapsed_ms, start, stop);
    return error;
  }
  cudaError_t ping_pong(uint64_t* elapsed_ns) {
    void* arguments[] = {&words};
    cudaError_t error = cudaMemsetAsync(words, 0, sizeof(PingPong), stream);
    if (error == cudaSuccess) error = launch(reinterpret_cast<const void*>(&k_ping_pong), 2, arguments, stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    if (error == cudaSuccess) {
      error = cudaMemcpy(elapsed_ns, &words->elapsed_ns.word, sizeof(*elapsed_ns), cudaMemcpyDeviceToHost);
    }
    return error;
  }
  ~FloorProbe() {
    if (replayed != nullptr) cudaGraphExecDestroy(replayed);
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (stop != nullptr) cudaEventDestroy(stop);
    if (start != nullptr) cudaEventDestroy(start);
    if (stream != nullptr) cudaStreamDestroy(stream);
    cudaFree(words);
  }
};

}  // namespace

DcommCudaStatus measure_launch_floor(int device, double* empty_launch_us, double* round_trip_us,
                                     const CudaMessage& message) {
  const ScopedDevice scope(device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  FloorProbe probe;
  float elapsed_ms[kNumReplays];
  uint64_t elapsed_ns[3] = {};
  cudaError_t error = probe.prepare();
  if (error == cudaSuccess) error = probe.replay(elapsed_ms);  // uploads the graph
  for (float& ms : elapsed_ms) {
    if (error == cudaSuccess) error = probe.replay(&ms);
  }
  for (uint64_t& ns : elapsed_ns) {
    if (error == cudaSuccess) error = probe.ping_pong(&ns);
  }
  if (error != cudaSuccess) return message.failed("launch_floor", error);
  std::sort(std::begin(elapsed_ms), std::end(elapsed_ms));
  std::sort(std::begin(elapsed_ns), std::end(elapsed_ns));
  if (elapsed_ns[0] == 0) {
    return message.say(
        kDcommCudaTimeout,
        "launch_floor: a flag between two blocks of cuda:%d did not come within 1 s; see whether another "
        "program keeps the GPU busy",
        device);
  }
  *empty_launch_us = 1e3 * static_cast<double>(elapsed_ms[kNumReplays / 2]) / kNumLaunches;
  *round_trip_us = 1e-3 * static_cast<double>(elapsed_ns[1]) / static_cast<double>(kNumTrips);
  return kDcommCudaOk;
}

}  // namespace dcomm
