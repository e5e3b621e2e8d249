// Handing core objects to Python. Floor: python.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <type_traits>
#include <utility>

#include "comm/communicator.h"
#include "comm/fork_guard.h"

namespace dcomm {

/// For objects that threads wait on or serve. A forked child does not delete them: the threads are not there to be
/// joined, yet the condition variables count their waits. Deleting a communicator joins: never with the GIL held.
template <class T>
std::shared_ptr<T> releasing(std::shared_ptr<T> object) {
  T* raw = object.get();
  return {raw, [keep = std::move(object), generation = fork_generation()](T*) mutable {
            if (fork_generation() != generation) {
              static_cast<void>(new std::shared_ptr<T>(std::move(keep)));
              return;
            }
            if constexpr (std::is_same_v<T, Communicator>) {
              const pybind11::gil_scoped_release release;
              keep.reset();
            }
          }};
}

}  // namespace dcomm
