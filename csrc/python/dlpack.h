// The layout of DLPack. Floor: python.
#pragma once

#include <cstdint>

namespace dcomm {

// The layout of DLPack 1.0, whose DLTensor is that of the capsules without a version.
struct DLDevice {
  int32_t type;
  int32_t id;
};
struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // nullptr: C order
  uint64_t byte_offset;
};
struct DLVersion {
  uint32_t major;
  uint32_t minor;
};
struct DLManagedTensorVersioned {
  DLVersion version;
  void* manager;
  void (*deleter)(DLManagedTensorVersioned*);
  uint64_t flags;
  DLTensor tensor;
};
inline constexpr uint64_t kDLReadOnly = 1;

/// Without a version, from before DLPack 1.0.
struct DLManagedTensor {
  DLTensor tensor;
  void* manager;
  void (*deleter)(DLManagedTensor*);
};

/// Of DLDevice.
inline constexpr int32_t kDLCuda = 2;

}  // namespace dcomm
