#include "launch/cuda_work.h"

#include <utility>

#include "launch/cuda_loader.h"

namespace dcomm {

namespace {

constexpr size_t kMessageBytes = 512;

}  // namespace

std::shared_ptr<CudaEvents> CudaEvents::create(const DcommCudaTable& table, int device) {
  std::shared_ptr<CudaEvents> events(new CudaEvents(table, device));
  for (int i = 0; i < kNumReady; ++i) events->free_.push_back(events->make());
  return events;
}

CudaEvents::~CudaEvents() {
  for (DcommCudaEvent* event : free_) table_.event_destroy(event);
}

DcommCudaEvent* CudaEvents::make() const {
  DcommCudaEvent* event = nullptr;
  char message[kMessageBytes] = "";
  check_cuda(table_.event_create(device_, &event, message, sizeof(message)), message);
  return event;
}

std::shared_ptr<DcommCudaEvent> CudaEvents::take() {
  DcommCudaEvent* event = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      event = free_.back();
      free_.pop_back();
    }
  }
  if (event == nullptr) event = make();
  return {event, [self = shared_from_this()](DcommCudaEvent* returned) {
            const std::lock_guard lock(self->mutex_);
            self->free_.push_back(returned);
          }};
}

void CudaWork::start(const DcommCudaTable& table, std::shared_ptr<DcommCudaEvent> end) {
  table_ = &table;
  end_ = std::move(end);
  phase_.store(Phase::kLaunched, std::memory_order_release);
}

void CudaWork::give_up(const Error& error) {
  if (is_settled()) return;
  error_ = error;
  phase_.store(Phase::kGivenUp, std::memory_order_release);
}

void CudaWork::check_started() const {
  DCOMM_CHECK(is_settled(), ErrorCode::kInvalidArgument,
              "the operation is not launched yet: inside dcomm.group the call of the last rank launches it; wait for "
              "it after that");
  if (error_) throw Error(*error_);
}

DcommCudaEventState CudaWork::state() const {
  if (!is_settled()) return kDcommCudaEventAhead;
  check_started();
  int32_t state = kDcommCudaEventAhead;
  char message[kMessageBytes] = "";
  check_cuda(table_->event_query(end_.get(), &state, message, sizeof(message)), message);
  return static_cast<DcommCudaEventState>(state);
}

void CudaWork::order_before(void* stream) const {
  check_started();
  char message[kMessageBytes] = "";
  check_cuda(table_->event_wait(end_.get(), stream, message, sizeof(message)), message);
}

}  // namespace dcomm
