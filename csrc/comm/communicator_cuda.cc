// Communicator: arrays on a GPU, of ranks that are threads or processes. Floor: comm.
#include <chrono>
#include <thread>

#include "comm/communicator.h"
#include "comm/entry.h"
#include "launch/cuda_plan.h"

namespace dcomm {

namespace {

/// DCOMM_ALGO for a GPU; one that has no kernel for `dtype` says nothing.
Algo forced_cuda_algo(const Settings& settings, DType dtype) {
  const Algo forced = settings.forced_algo;
  return has_cuda_algo(forced, dtype) ? forced : Algo::kAuto;
}

/// Beyond the deadline of a kernel's waits, which is also 30 s at least where processes share a GPU.
constexpr int64_t kCudaWorkExtraNs = 35'000'000'000;

}  // namespace

CudaThreadGroup& Communicator::cuda_group() const {
  DCOMM_CHECK(cuda_group_ != nullptr, ErrorCode::kInternal, "a communicator of processes has no group of threads");
  return *cuda_group_;
}

/// Of arrays of a GPU, where launch/cuda_plan.h makes what "auto" leaves open. Threads reach all memory: there the
/// results may lie anywhere.
void Communicator::choose_cuda_algo(CollectiveCall& call) {
  if (call.collective != Collective::kAllReduce) return;
  if (!regions_.empty()) regions_.look_up(call);
  const bool is_shared = call.shared_in.windows != nullptr && has_cuda_direct(call.dtype, call.op);
  DCOMM_CHECK(call.algo != Algo::kDirect || call.shared_in.windows == nullptr || is_shared, ErrorCode::kInvalidArgument,
              "algo='direct' with a CUDA array of ", dtype_name(call.dtype), " and op='", reduce_op_name(call.op),
              "': on CUDA it is for float32, float16 and bfloat16, sum and avg; use algo='auto'");
  check_direct(call, is_shared);
  if (call.algo == Algo::kAuto) call.algo = forced_cuda_algo(settings_, call.dtype);
  const bool pulled = call.shared_out.windows == nullptr && serves_cuda_between_processes();
  const size_t nbytes = call.count * dtype_bytes(call.dtype);
  const bool pays = is_shared && cuda_direct_pays(nbytes, world_size(), pulled);
  if (call.algo == Algo::kAuto && pays) call.algo = Algo::kDirect;
  if (call.algo == Algo::kDirect && !is_shared) call.algo = Algo::kAuto;  // DCOMM_ALGO, or no elements
  if (call.algo != Algo::kDirect) call.shared_in = call.shared_out = {};
}

void Communicator::check_cuda_device(int device) const {
  const int met = cuda_device();
  DCOMM_CHECK(met < 0 || met == device, ErrorCode::kInvalidArgument, "got cuda:", device,
              ", but this communicator uses cuda:", met, "; make another communicator for another GPU");
}

void Communicator::run_cuda(CudaRankCall call, bool collected) {
  const Entry entry(entered_);
  check_usable();
  complete_call(call.call);
  choose_cuda_algo(call.call);
  if (call.timeout_ns <= 0) call.timeout_ns = settings_.timeout_ns;
  if (serves_cuda_between_processes()) {
    run_cuda_between_processes(call);
  } else if (collected) {
    cuda_group().collect(rank(), call);
  } else if (call.work != nullptr) {
    cuda_group().post(rank(), call);
  } else {
    cuda_group().run(rank(), call);
  }
}

void Communicator::end_collecting_cuda(bool complain) {
  if (!serves_cuda_between_processes()) cuda_group().end_collecting(complain);
}

void Communicator::open_cuda(int device) {
  const Entry entry(entered_);
  check_usable();
  if (serves_cuda_between_processes()) {
    open_cuda_processes(device, 0, nullptr);
  } else {
    cuda_group().open(device);
  }
}

int Communicator::cuda_device() const {
  if (cuda_group_ != nullptr) return cuda_group_->device();
  const auto group = cuda_processes();
  return group == nullptr ? -1 : group->device();
}

void Communicator::synchronize_cuda(int64_t timeout_ns) {
  const Entry entry(entered_);
  check_usable();
  const int64_t limit_ns = timeout_ns > 0 ? timeout_ns : settings_.timeout_ns;
  if (!serves_cuda_between_processes()) return cuda_group().synchronize_check(rank(), limit_ns);
  synchronize_cuda_processes(limit_ns);
}

void Communicator::expect_cuda(const CudaWork& work, int64_t timeout_ns, bool is_final, InterruptCheck interrupted) {
  if (work.is_settled() || serves_cuda_between_processes()) return;
  cuda_group().await(rank(), work, {timeout_ns, is_final, interrupted, nullptr});
}

void Communicator::order_cuda(const CudaWork& work, void* stream, InterruptCheck interrupted) {
  expect_cuda(work, work.timeout_ns(), true, interrupted);
  work.order_before(stream);
}

bool Communicator::withdraw_cuda(const CudaWork& work) {
  return !work.is_settled() && !serves_cuda_between_processes() && cuda_group().withdraw(rank(), work);
}

void Communicator::wait_cuda(const CudaWork& work, int64_t timeout_ns, InterruptCheck interrupted) {
  constexpr auto kSpin = std::chrono::microseconds(50);
  constexpr auto kBetweenChecks = std::chrono::milliseconds(50);
  const auto start = Clock::now();
  expect_cuda(work, timeout_ns > 0 ? timeout_ns : work.timeout_ns(), timeout_ns <= 0, interrupted);
  work.check_started();
  const auto limit = std::chrono::nanoseconds(timeout_ns > 0 ? timeout_ns : work.timeout_ns() + kCudaWorkExtraNs);
  auto next_check = start + kBetweenChecks;
  for (;;) {
    const DcommCudaEventState state = work.state();
    DCOMM_CHECK(state != kDcommCudaEventCaptured, ErrorCode::kInvalidArgument,
                "the operation is part of a CUDA graph, each launch of which has an end of its own; wait for the "
                "stream that launched it");
    if (state == kDcommCudaEventOver) return check_cuda_reports();
    const auto now = Clock::now();
    DCOMM_CHECK(now - start < limit, ErrorCode::kTimeout, "the operation is still running on the GPU, or waits there ",
                "for what its stream was given before, after ", 1e-9 * static_cast<double>(limit.count()),
                " s; wait again, or abort the communicator");
    if (now >= next_check) {
      next_check = now + kBetweenChecks;
      if (interrupted != nullptr && interrupted(nullptr)) {
        this->abort();
        throw Error(ErrorCode::kInterrupted, "interrupted");
      }
    }
    if (now - start > kSpin) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

}  // namespace dcomm
