// A collective of ranks on one GPU: the way from N streams through one launch. Floor: launch.
//
//   rank r's stream: ... -> ready[r] -\                               /-> rank r's stream waits for `done`
//                                      launch stream: kernel -> done
#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>

#include "exec/cuda_block_exec.cuh"
#include "launch/cuda_call_rules.h"
#include "launch/cuda_device_group.cuh"
#include "launch/cuda_kernels.h"
#include "launch/cuda_status.cuh"

namespace dcomm {

namespace {

DcommCudaStatus check_rank(const DcommCudaCall& call, int rank, const CudaMessage& message) {
  if (!has_good_arrays(call, rank)) {
    return message.say(kDcommCudaInvalid,
                       "rank %d's arrays are at %p and %p, expected addresses that are multiples of "
                       "%zu; pass a copy",
                       rank, call.in[rank], call.out[rank], dtype_bytes(static_cast<DType>(call.dtype)));
  }
  if (!is_first_of_its_stream(call, rank)) return kDcommCudaOk;
  const auto stream = static_cast<cudaStream_t>(call.streams[rank]);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  const cudaError_t error = stream == cudaStreamPerThread ? cudaSuccess : cudaStreamIsCapturing(stream, &capture);
  if (stream == cudaStreamPerThread) {
    return message.say(kDcommCudaInvalid,
                       "rank %d passes the per-thread default stream, which means another stream in the thread that "
                       "launches for all ranks; pass a stream of its own",
                       rank);
  }
  if (error == cudaErrorStreamCaptureImplicit || capture != cudaStreamCaptureStatusNone) {
    return message.say(
        kDcommCudaInvalid,
        "rank %d's stream is capturing a CUDA graph, which ranks that are threads of one process cannot; "
        "call collectives outside of the capture",
        rank);
  }
  return error == cudaSuccess ? kDcommCudaOk : message.failed("cudaStreamIsCapturing", error);
}

CudaJob make_job(const DcommCudaGroup& group, const DcommCudaCall& call, const ChunkPlan& plan) {
  CudaJob job{};
  job.first_rank = 0;
  job.world_size = group.num_ranks;
  job.num_channels = group.num_channels;
  job.root = call.root;
  job.peer = call.peer;
  job.divisor = static_cast<ReduceOp>(call.op) == ReduceOp::kAvg ? static_cast<float>(group.num_ranks) : 1.0f;
  job.slot_bytes = group.slot_bytes;
  job.timeout_ns = call.timeout_ns;
  job.windows = group.window_table;
  job.counters = group.counters;
  job.abort = &group.device_words->stop;
  job.error = &group.device_words->error;
  job.plan = plan;
  for (int r = 0; r < group.num_ranks; ++r) job.arrays[r] = CudaArrays{call.in[r], call.out[r]};
  return job;
}

/// Every rank's stream -> launch stream -> every rank's stream.
cudaError_t enqueue(DcommCudaGroup& group, const DcommCudaCall& call, const CudaKernel& kernel,
                    const CudaChoice& choice) {
  const CudaJob job = make_job(group, call, choice.plan);
  const std::lock_guard lock(group.queue->mutex);
  const cudaStream_t launch = group.queue->stream;
  for (int r = 0; r < group.num_ranks; ++r) {
    if (!is_first_of_its_stream(call, r)) continue;
    const cudaEvent_t ready = group.ready[static_cast<size_t>(r)];
    cudaError_t error = cudaEventRecord(ready, static_cast<cudaStream_t>(call.streams[r]));
    if (error == cudaSuccess) error = cudaStreamWaitEvent(launch, ready, 0);
    if (error != cudaSuccess) return error;
  }
  cudaError_t error =
      static_cast<cudaError_t>(launch_cuda_kernel(kernel, job, choice.num_channels, group.num_ranks, launch));
  if (error == cudaSuccess) error = cudaEventRecord(group.done, launch);
  for (int r = 0; r < group.num_ranks && error == cudaSuccess; ++r) {
    if (is_first_of_its_stream(call, r)) {
      error = cudaStreamWaitEvent(static_cast<cudaStream_t>(call.streams[r]), group.done, 0);
    }
  }
  return error;
}

}  // namespace

DcommCudaStatus run_cuda_group(DcommCudaGroup& group, const DcommCudaCall& call, const CudaMessage& message) {
  if (!is_known_call(call, group.num_ranks)) {
    return message.say(kDcommCudaInvalid,
                       "dtype %d, wire %d, op %d, root %d of %d ranks: on CUDA, sums and averages only so far; use a "
                       "CPU array for other operations",
                       call.dtype, call.wire, call.op, call.root, group.num_ranks);
  }
  CudaRequest request;
  request.collective = static_cast<Collective>(call.collective);
  request.algo = static_cast<Algo>(call.algo);
  request.dtype = static_cast<DType>(call.dtype);
  request.wire = static_cast<DType>(call.wire);
  request.count = call.count;
  const CudaChoice choice =
      choose_cuda(request, CudaShape{group.num_ranks, group.num_channels, group.slot_bytes, kCudaPacketDataBytes});
  const CudaKernel* const kernel = find_cuda_kernel(choice.key, group.num_ranks);
  if (kernel == nullptr) {
    return message.say(kDcommCudaInvalid,
                       "no CUDA kernel for %s (%s) of %s arrays on a %s wire; sums are of float32, float16 or bfloat16 "
                       "arrays, with a float16 or bfloat16 wire in an all_reduce of float32 only",
                       collective_name(request.collective), algo_name(choice.key.algo), dtype_name(request.dtype),
                       dtype_name(request.wire));
  }
  const ScopedDevice scope(group.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  for (int r = 0; r < group.num_ranks; ++r) {
    const DcommCudaStatus status = check_rank(call, r, message);
    if (status != kDcommCudaOk) return status;
  }
  const cudaError_t error = enqueue(group, call, *kernel, choice);
  return error == cudaSuccess ? kDcommCudaOk : message.failed(kernel->name, error);
}

}  // namespace dcomm
