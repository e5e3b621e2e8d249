// The event of an asynchronous operation, inside _cuda.so. Floor: launch.
#pragma once

#include <cuda_runtime.h>

#include "launch/cuda_api.h"

struct DcommCudaEvent {
  int device = 0;
  cudaEvent_t event = nullptr;
  bool is_captured = false;  // what it has recorded last is part of a graph
};
