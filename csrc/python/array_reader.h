// The memory of arrays of known types, read without a Python function call. Floor: python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

#include "base/dtype.h"

namespace dcomm {

/// How to reach an array's memory; the values of KINDS in dcomm/arrays.py.
enum class ArrayKind { kBuffer = 1, kTensor = 2 };

struct ArrayTypes {
  pybind11::dict kinds;        // type of array -> ArrayKind
  pybind11::dict torch_codes;  // torch dtype -> DType
};

struct PlainArray {
  void* data = nullptr;
  size_t count = 0;
  DType dtype = DType::kF32;
  bool is_tensor = false;
};

/// The number that `table` has for `key`; false: none, or a key that cannot be one. No error is set.
bool look_up(const pybind11::dict& table, PyObject* key, long* value);

/// False: not a contiguous, writable array in host memory of a type and dtype seen before. No error is set.
bool read_plain_array(const ArrayTypes& types, PyObject* array, PlainArray* found);

/// Where a tensor's elements are now. Throws what Python raised.
void* tensor_data(PyObject* tensor);

}  // namespace dcomm
