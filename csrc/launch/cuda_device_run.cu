// A collective of a process' ranks on one GPU: the way from N streams through one launch. Floor: launch.
//
//   rank r's stream: ... -> ready[r] -\                               /-> rank r's stream waits for `done`
//                                      launch stream: kernel -> done
//
// The streams of detached ranks do not wait; whoever has the call's event lets others wait for it later.
#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>

#include "exec/cuda_block_exec.cuh"
#include "launch/cuda_call_rules.h"
#include "launch/cuda_device_group.cuh"
#include "launch/cuda_event.cuh"
#include "launch/cuda_kernels.h"
#include "launch/cuda_status.cuh"

namespace dcomm {

namespace {

/// The first of the equal streams of this process' ranks.
bool leads_its_stream(const DcommCudaGroup& group, const DcommCudaCall& call, int local) {
  return is_first_of_its_stream(call, group.first_rank + local, group.first_rank);
}

DcommCudaStatus check_rank(const DcommCudaGroup& group, const DcommCudaCall& call, int local,
                           const CudaMessage& message) {
  const int rank = group.first_rank + local;
  if (!has_good_arrays(call, rank, group.first_rank)) {
    return message.say(kDcommCudaInvalid,
                       "rank %d's arrays are at %p and %p, expected addresses that are multiples of "
                       "%zu; pass a copy",
                       rank, call.in[local], call.out[local], dtype_bytes(static_cast<DType>(call.dtype)));
  }
  if (group.num_local_ranks > 1 && leads_its_stream(group, call, local) && call.streams[local] == cudaStreamPerThread) {
    return message.say(kDcommCudaInvalid,
                       "rank %d passes the per-thread default stream, which means another stream in the thread that "
                       "launches for all ranks; pass a stream of its own",
                       rank);
  }
  return kDcommCudaOk;
}

/// Whether all streams belong to one capture of a graph; either all do or none.
DcommCudaStatus check_capture(const DcommCudaGroup& group, const DcommCudaCall& call, bool* captured,
                              const CudaMessage& message) {
  int first = -1;
  unsigned long long first_id = 0;  // 0: not capturing
  for (int r = 0; r < group.num_local_ranks; ++r) {
    if (!leads_its_stream(group, call, r)) continue;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long id = 0;
    const cudaError_t error = cudaStreamGetCaptureInfo(static_cast<cudaStream_t>(call.streams[r]), &status, &id);
    if (error == cudaErrorStreamCaptureImplicit) {
      return message.say(kDcommCudaInvalid,
                         "rank %d's stream is the legacy default one, which cannot be used while another captures a "
                         "CUDA graph; pass the capturing stream",
                         group.first_rank + r);
    }
    if (error != cudaSuccess) return message.failed("cudaStreamGetCaptureInfo", error);
    if (status == cudaStreamCaptureStatusNone) id = 0;
    if (first < 0) {
      first = r;
      first_id = id;
    } else if (id != first_id) {
      return message.say(kDcommCudaInvalid,
                         "rank %d's stream is capturing a CUDA graph, of which rank %d's stream is no part; let one "
                         "thread capture for all ranks, inside dcomm.group",
                         first_id != 0 ? first : r, first_id != 0 ? r : first);
    }
  }
  *captured = first_id != 0;
  for (int r = 0; r < group.num_local_ranks && *captured; ++r) {
    if (ready_event(call, group.first_rank + r, group.first_rank) == nullptr) continue;
    return message.say(kDcommCudaInvalid,
                       "rank %d's stream is capturing a CUDA graph, of which rank %d's asynchronous call is no part; "
                       "let one thread capture for all ranks, inside dcomm.group",
                       group.first_rank + first, group.first_rank + r);
  }
  return kDcommCudaOk;
}

DcommCudaStatus check_direct(const DcommCudaGroup& group, const DcommCudaCall& call, const CudaMessage& message) {
  if (static_cast<Algo>(call.algo) != Algo::kDirect && call.all_in == nullptr) return kDcommCudaOk;
  if (static_cast<Algo>(call.algo) == Algo::kDirect && call.all_in != nullptr &&
      group.world_size <= kMaxCudaDirectRanks) {
    return kDcommCudaOk;
  }
  return message.say(kDcommCudaInvalid,
                     "algo 'direct' is for arrays that all of at most %d ranks reach, here of %d; use algo='auto'",
                     kMaxCudaDirectRanks, group.world_size);
}

CudaJob make_job(const DcommCudaGroup& group, const DcommCudaCall& call, const ChunkPlan& plan) {
  CudaJob job{};
  job.first_rank = group.first_rank;
  job.world_size = group.world_size;
  job.num_channels = group.num_channels;
  job.root = call.root;
  job.peer = call.peer;
  job.tag = call.tag;
  job.dtype = static_cast<DType>(call.dtype);
  job.wire = static_cast<DType>(call.wire);
  job.divisor = static_cast<ReduceOp>(call.op) == ReduceOp::kAvg ? static_cast<float>(group.world_size) : 1.0f;
  job.slot_bytes = group.slot_bytes;
  job.timeout_ns = call.timeout_ns;
  job.fingerprint = call.fingerprint;
  job.windows = group.window_table;
  job.counters = group.counters;
  job.abort = &group.device_words->stop;
  job.error = &group.device_words->error;
  job.plan = plan;
  if (call.all_in == nullptr) {
    for (int r = 0; r < group.num_local_ranks; ++r) job.arrays[r] = CudaArrays{call.in[r], call.out[r]};
    return job;
  }
  for (int r = 0; r < group.world_size; ++r) {
    job.arrays[r] = CudaArrays{call.all_in[r], call.all_out == nullptr ? nullptr : call.all_out[r]};
  }
  for (int r = 0; r < group.num_local_ranks; ++r) job.arrays[group.first_rank + r].out = call.out[r];
  return job;
}

/// What follows a kernel, for whoever asks for its end later.
cudaError_t record_end(const DcommCudaCall& call, cudaStream_t launch, bool captured) {
  if (call.end == nullptr) return cudaSuccess;
  call.end->is_captured = captured;
  return cudaEventRecord(call.end->event, launch);
}

/// The caller's stream `launch` itself needs no event.
cudaError_t let_streams_wait(const DcommCudaGroup& group, const DcommCudaCall& call, cudaEvent_t over,
                             cudaStream_t launch) {
  cudaError_t error = cudaSuccess;
  for (int r = 0; r < group.num_local_ranks && error == cudaSuccess; ++r) {
    const auto stream = static_cast<cudaStream_t>(call.streams[r]);
    if (stream == launch || !waits_for_end(call, group.first_rank + r, group.first_rank)) continue;
    error = cudaStreamWaitEvent(stream, over, 0);
  }
  return error;
}

/// As enqueue(), into the graph that the ranks' streams are capturing. The launch stream stays out of it: other threads
/// use it meanwhile. So the kernel is a node of the first rank's own stream, detached or not. When the graph runs,
/// `done` does not know; order between its launches and other operations of the group is the caller's, by streams.
cudaError_t enqueue_captured(DcommCudaGroup& group, const DcommCudaCall& call, const CudaKernel& kernel,
                             const CudaChoice& choice) {
  const CudaJob job = make_job(group, call, choice.plan);
  int first = 0;
  while (!takes_part(call, group.first_rank + first)) ++first;
  const auto launch = static_cast<cudaStream_t>(call.streams[first]);
  bool alone = true;
  cudaError_t error = cudaSuccess;
  for (int r = first + 1; r < group.num_local_ranks && error == cudaSuccess; ++r) {
    if (!leads_its_stream(group, call, r)) continue;
    alone = false;
    const cudaEvent_t ready = group.ready[static_cast<size_t>(r)];
    error = cudaEventRecord(ready, static_cast<cudaStream_t>(call.streams[r]));
    if (error == cudaSuccess) error = cudaStreamWaitEvent(launch, ready, 0);
  }
  if (error == cudaSuccess) {
    error =
        static_cast<cudaError_t>(launch_cuda_kernel(kernel, job, choice.num_channels, group.num_local_ranks, launch));
  }
  if (error == cudaSuccess) error = record_end(call, launch, true);
  if (alone || error != cudaSuccess) return error;
  const cudaEvent_t over = group.ready[static_cast<size_t>(first)];
  error = cudaEventRecord(over, launch);
  return error == cudaSuccess ? let_streams_wait(group, call, over, launch) : error;
}

/// Every local rank's stream -> launch stream -> every local rank's stream.
cudaError_t enqueue(DcommCudaGroup& group, const DcommCudaCall& call, const CudaKernel& kernel,
                    const CudaChoice& choice) {
  const CudaJob job = make_job(group, call, choice.plan);
  const std::lock_guard lock(group.queue->mutex);
  const cudaStream_t launch = group.queue->stream;
  for (int r = 0; r < group.num_local_ranks; ++r) {
    const DcommCudaEvent* const noted = ready_event(call, group.first_rank + r, group.first_rank);
    if (noted == nullptr && !leads_its_stream(group, call, r)) continue;
    const cudaEvent_t ready = noted == nullptr ? group.ready[static_cast<size_t>(r)] : noted->event;
    cudaError_t error = cudaSuccess;
    if (noted == nullptr) error = cudaEventRecord(ready, static_cast<cudaStream_t>(call.streams[r]));
    if (error == cudaSuccess) error = cudaStreamWaitEvent(launch, ready, 0);
    if (error != cudaSuccess) return error;
  }
  cudaError_t error =
      static_cast<cudaError_t>(launch_cuda_kernel(kernel, job, choice.num_channels, group.num_local_ranks, launch));
  if (error == cudaSuccess) error = cudaEventRecord(group.done, launch);
  if (error == cudaSuccess) error = record_end(call, launch, false);
  return error == cudaSuccess ? let_streams_wait(group, call, group.done, launch) : error;
}

}  // namespace

DcommCudaStatus run_cuda_group(DcommCudaGroup& group, const DcommCudaCall& call, const CudaMessage& message) {
  if (!is_known_call(call, group.world_size)) {
    return message.say(kDcommCudaInvalid,
                       "dtype %d, wire %d, op %d, root %d of %d ranks: on CUDA, sums only so far, and averages of "
                       "floats; use a CPU array for other operations",
                       call.dtype, call.wire, call.op, call.root, group.world_size);
  }
  CudaRequest request;
  request.collective = static_cast<Collective>(call.collective);
  request.algo = static_cast<Algo>(call.algo);
  request.dtype = static_cast<DType>(call.dtype);
  request.wire = static_cast<DType>(call.wire);
  request.count = call.count;
  request.pulled = call.all_out == nullptr;
  const CudaChoice choice =
      choose_cuda(request, CudaShape{group.world_size, group.num_channels, group.slot_bytes, kCudaPacketDataBytes});
  const CudaKernel* const kernel = find_cuda_kernel(choice.key, group.world_size);
  if (kernel == nullptr) {
    return message.say(
        kDcommCudaInvalid,
        "no CUDA kernel for %s (%s) of %s arrays on a %s wire; sums are of float32, float16 or bfloat16 "
        "arrays, with a float16, bfloat16 or fp8 wire in an all_reduce of float32 only, or, by two_shot or "
        "ring, of integers or bool",
        collective_name(request.collective), algo_name(choice.key.algo), dtype_name(request.dtype),
        dtype_name(request.wire));
  }
  const DcommCudaStatus direct = check_direct(group, call, message);
  if (direct != kDcommCudaOk) return direct;
  const ScopedDevice scope(group.device);
  if (scope.status() != cudaSuccess) return message.failed("cudaSetDevice", scope.status());
  for (int r = 0; r < group.num_local_ranks; ++r) {
    const DcommCudaStatus status = check_rank(group, call, r, message);
    if (status != kDcommCudaOk) return status;
  }
  bool captured = false;
  const DcommCudaStatus status = check_capture(group, call, &captured, message);
  if (status != kDcommCudaOk) return status;
  const cudaError_t error = (captured ? enqueue_captured : enqueue)(group, call, *kernel, choice);
  return error == cudaSuccess ? kDcommCudaOk : message.failed(kernel->name, error);
}

}  // namespace dcomm
