// Helpers of the set-up checks: ranks as threads of one process, each with a mesh of its own.
#pragma once

#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>
#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "comm/mesh.h"

namespace dcomm::checks {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kUnderTsan = true;  // it cannot follow a fork of a process that had threads
#else
inline constexpr bool kUnderTsan = false;
#endif

inline std::string fresh_key() {
  static int counter = 0;
  return "check " + std::to_string(::getpid()) + "." + std::to_string(++counter);
}

inline MeshOptions options_for(int rank, int world_size, const std::string& key, double timeout_s = 10) {
  MeshOptions options;
  options.rank = rank;
  options.world_size = world_size;
  options.meeting_key = key;
  options.package_version = "1.0";
  options.launcher_id = 1;
  options.timeout = std::chrono::milliseconds(static_cast<int>(timeout_s * 1000));
  return options;
}

using Outcome = std::optional<Error>;

inline bool is_error(const Outcome& outcome, ErrorCode code, const std::string& text) {
  return outcome && outcome->code() == code && std::string(outcome->what()).find(text) != std::string::npos;
}
inline std::string text_of(const Outcome& outcome) {
  return outcome ? std::to_string(static_cast<int>(outcome->code())) + " " + outcome->what() : "no error";
}
#define EXPECT_ERROR(outcome, code, text) EXPECT_MSG(is_error(outcome, code, text), "got: " + text_of(outcome))

/// Runs the tasks as threads; their dcomm errors, or a failed check of one of them.
inline std::vector<Outcome> run_threads(const std::vector<std::function<void()>>& tasks) {
  std::vector<Outcome> outcomes(tasks.size());
  std::vector<std::string> failures(tasks.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < tasks.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        tasks[i]();
      } catch (const Error& error) {
        outcomes[i] = error;
      } catch (const std::exception& failure) {
        failures[i] = failure.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) EXPECT_MSG(failure.empty(), failure);
  return outcomes;
}

/// Ranks 0 .. n-1 connect and run `body`.
inline std::vector<Outcome> run_ranks(int world_size, const std::function<void(Mesh&)>& body) {
  const std::string key = fresh_key();
  std::vector<std::function<void()>> tasks;
  for (int rank = 0; rank < world_size; ++rank) {
    tasks.emplace_back([=, &body] {
      const auto mesh = Mesh::connect(options_for(rank, world_size, key));
      body(*mesh);
    });
  }
  return run_threads(tasks);
}

inline void expect_no_errors(const std::vector<Outcome>& outcomes) {
  for (const Outcome& outcome : outcomes) EXPECT_MSG(!outcome, text_of(outcome));
}

inline int count_entries(const char* folder) {
  DIR* entries = ::opendir(folder);
  EXPECT(entries != nullptr);
  int count = 0;
  while (::readdir(entries) != nullptr) ++count;
  ::closedir(entries);
  return count;
}

/// Fails when the check has left a descriptor open.
class NoLeakedDescriptors {
 public:
  void verify() const { EXPECT_EQ(count_entries("/proc/self/fd"), before_); }

 private:
  const int before_ = count_entries("/proc/self/fd");
};

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// A forked child that runs `body` and exits with its result, 99 after an exception. Killed by the
/// destructor.
class Child {
 public:
  explicit Child(const std::function<int()>& body) : pid_(::fork()) {
    if (pid_ != 0) return;
    int code = 99;
    try {
      code = body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    ::_exit(code);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    kill();
    wait();
  }
  void kill() const {
    if (pid_ > 0) ::kill(pid_, SIGKILL);
  }
  int wait() {
    int status = -1;
    if (pid_ > 0) ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

}  // namespace dcomm::checks
