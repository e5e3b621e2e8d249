// Checks of Liveness and the fork guard: who left, who died, and how fast the others know.
#include <fcntl.h>
#include <sys/socket.h>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <mutex>

#include "comm/fork_guard.h"
#include "comm/liveness.h"
#include "comm/packet.h"
#include "comm/unix_socket.h"
#include "rank_threads.h"

namespace dcomm::checks {
namespace {

struct Exits {
  void note(int rank, PeerExit how) {
    const std::lock_guard<std::mutex> lock(mutex);
    all.emplace_back(rank, how);
    last = Clock::now();
  }
  size_t count() {
    const std::lock_guard<std::mutex> lock(mutex);
    return all.size();
  }
  bool wait_for(size_t wanted, double timeout_s = 5) {
    const auto start = Clock::now();
    while (count() < wanted && seconds_since(start) < timeout_s) ::usleep(200);
    return count() == wanted;
  }
  Liveness::OnExit handler() {
    return [this](int rank, PeerExit how) { note(rank, how); };
  }

  std::mutex mutex;
  std::vector<std::pair<int, PeerExit>> all;
  Clock::time_point last;
};

/// A mesh of two ranks in this thread's process.
std::vector<std::shared_ptr<Mesh>> make_pair_of_meshes() {
  std::vector<std::shared_ptr<Mesh>> meshes(2);
  const std::string key = fresh_key();
  expect_no_errors(run_threads({[&] { meshes[0] = Mesh::connect(options_for(0, 2, key)); },
                                [&] { meshes[1] = Mesh::connect(options_for(1, 2, key)); }}));
  return meshes;
}

/// Rank 0 here, rank 1 a child that runs `body`. Returns when both are connected.
struct PairWithChild {
  explicit PairWithChild(const std::function<int(std::unique_ptr<Mesh>)>& body, const std::string& key = fresh_key())
      : child([&] { return body(Mesh::connect(options_for(1, 2, key))); }),
        mesh(Mesh::connect(options_for(0, 2, key))) {}
  Child child;
  std::shared_ptr<Mesh> mesh;
};

/// Milliseconds from SIGKILL to the callback.
double measure_kill(const std::function<int(std::unique_ptr<Mesh>)>& body) {
  PairWithChild pair(body);
  EXPECT_EQ(pair.mesh->peer(1).pid, pair.child.pid());
  Exits exits;
  pair.mesh->barrier();  // the last word on the sockets: from here on they are the watcher's
  const Liveness liveness(pair.mesh, exits.handler());
  ::usleep(2000);
  const auto start = Clock::now();
  pair.child.kill();
  EXPECT(exits.wait_for(1));
  EXPECT(exits.all[0] == std::make_pair(1, PeerExit::kDied));
  return std::chrono::duration<double, std::milli>(exits.last - start).count();
}

void check_kills(const char* what, const std::function<int(std::unique_ptr<Mesh>)>& body, const int num_kills) {
  const NoLeakedDescriptors leaks;
  std::vector<double> times_ms;
  for (int i = 0; i < num_kills; ++i) times_ms.push_back(measure_kill(body));
  std::sort(times_ms.begin(), times_ms.end());
  std::printf("        %s: SIGKILL to callback: p50 %.2f ms, max %.2f ms of %d\n", what, times_ms[times_ms.size() / 2],
              times_ms.back(), num_kills);
  EXPECT_MSG(times_ms.back() < 100, "the slowest death took " + std::to_string(times_ms.back()) + " ms to see");
  leaks.verify();
}

int wait_for_death(std::unique_ptr<Mesh> mesh) {
  mesh->barrier();
  for (;;) ::pause();
}

}  // namespace

CHECK_CASE(liveness_tells_goodbye_from_death) {
  const NoLeakedDescriptors leaks;
  for (const bool polite : {true, false}) {
    auto meshes = make_pair_of_meshes();
    Exits exits;
    {
      Liveness watcher(meshes[0], exits.handler());
      if (polite) {
        Liveness leaver(meshes[1], [](int, PeerExit) {});
        leaver.say_goodbye();
        leaver.say_goodbye();  // the second one says nothing
      }
      meshes[1].reset();
      EXPECT(exits.wait_for(1));
      ::usleep(20'000);
      EXPECT_EQ(exits.count(), 1U);
    }
    EXPECT(exits.all[0] == std::make_pair(1, polite ? PeerExit::kLeft : PeerExit::kDied));
  }
  leaks.verify();
}

CHECK_CASE(liveness_ends_of_both_sides_at_once_are_goodbyes) {
  for (int i = 0; i < 30; ++i) {
    auto meshes = make_pair_of_meshes();
    Exits exits[2];
    auto leave = [&](size_t rank) {
      Liveness liveness(meshes[rank], exits[rank].handler());
      if (rank == 1) ::usleep(static_cast<unsigned>(i) * 20);
      liveness.say_goodbye();
      meshes[rank].reset();
      EXPECT(exits[rank].wait_for(1));
    };
    expect_no_errors(run_threads({[&] { leave(0); }, [&] { leave(1); }}));
    for (Exits& each : exits) EXPECT(each.all[0].second == PeerExit::kLeft);
  }
}

CHECK_CASE(liveness_reads_a_goodbye_behind_a_reset) {
  // Rank 1 closes with our goodbye unread: the socket reports ECONNRESET first, its goodbye comes after.
  auto meshes = make_pair_of_meshes();
  PacketHeader goodbye;
  goodbye.type = PacketType::kGoodbye;
  EXPECT(send_packet(meshes[0]->peer(1).socket, &goodbye, sizeof goodbye) == IoStatus::kDone);
  EXPECT(send_packet(meshes[1]->peer(0).socket, &goodbye, sizeof goodbye) == IoStatus::kDone);
  meshes[1].reset();
  Exits exits;
  const Liveness watcher(meshes[0], exits.handler());
  EXPECT(exits.wait_for(1));
  EXPECT(exits.all[0] == std::make_pair(1, PeerExit::kLeft));
}

CHECK_CASE(liveness_garbage_counts_as_death) {
  auto meshes = make_pair_of_meshes();
  Exits exits;
  Liveness watcher(meshes[0], exits.handler());
  EXPECT(send_packet(meshes[1]->peer(0).socket, "garbage", 7) == IoStatus::kDone);
  EXPECT(exits.wait_for(1));
  EXPECT(exits.all[0] == std::make_pair(1, PeerExit::kDied));
}

CHECK_CASE(liveness_thread_has_a_name_and_takes_no_signals) {
  auto meshes = make_pair_of_meshes();
  const Liveness liveness(meshes[0], [](int, PeerExit) {});
  std::string blocked;
  const auto start = Clock::now();
  while (blocked.empty() && seconds_since(start) < 5) {  // the thread names itself
    DIR* tasks = ::opendir("/proc/self/task");
    while (const dirent* task = ::readdir(tasks)) {
      std::ifstream status("/proc/self/task/" + std::string(task->d_name) + "/status");
      std::string line;
      bool is_watcher = false;
      while (std::getline(status, line)) {
        is_watcher = is_watcher || line == "Name:\tdcomm-liveness";
        if (is_watcher && line.rfind("SigBlk:\t", 0) == 0) blocked = line.substr(8);
      }
    }
    ::closedir(tasks);
  }
  // All but SIGKILL, SIGSTOP and the two that glibc keeps for itself.
  EXPECT_EQ(blocked, "fffffffe7ffbfeff");
}

CHECK_CASE(liveness_sees_a_kill_at_once) {
  if (kUnderTsan) return;
  check_kills("rank alone", wait_for_death, 50);
}

CHECK_CASE(liveness_sees_a_kill_although_a_worker_holds_the_socket) {
  if (kUnderTsan) return;
  int alive[2];
  EXPECT_EQ(::pipe2(alive, O_CLOEXEC), 0);
  check_kills(
      "with a live worker",
      [&](std::unique_ptr<Mesh> mesh) {
        const int kept = ::dup(mesh->peer(0).socket);  // not known to the fork guard
        if (::fork() == 0) {
          ::close(alive[1]);
          char byte;
          while (::read(alive[0], &byte, 1) < 0 && errno == EINTR) {
          }
          ::_exit(kept >= 0 ? 0 : 1);
        }
        return wait_for_death(std::move(mesh));
      },
      50);
  ::close(alive[1]);  // the workers end
  ::close(alive[0]);
}

CHECK_CASE(liveness_of_processes_tells_goodbye_from_exit) {
  if (kUnderTsan) return;
  for (const bool polite : {true, false}) {
    PairWithChild pair([polite](std::unique_ptr<Mesh> mesh) {
      std::shared_ptr<Mesh> shared = std::move(mesh);
      shared->barrier();
      if (polite) Liveness(shared, [](int, PeerExit) {}).say_goodbye();
      ::_exit(0);
      return 0;
    });
    Exits exits;
    pair.mesh->barrier();
    EXPECT_EQ(pair.child.wait(), 0);
    const Liveness liveness(pair.mesh, exits.handler());
    EXPECT(exits.wait_for(1));
    EXPECT(exits.all[0] == std::make_pair(1, polite ? PeerExit::kLeft : PeerExit::kDied));
  }
}

CHECK_CASE(fork_guard_closes_everything_in_a_child) {
  if (kUnderTsan) return;
  const NoLeakedDescriptors leaks;
  {
    auto meshes = make_pair_of_meshes();
    Exits parent_exits;
    auto liveness = std::make_unique<Liveness>(meshes[0], parent_exits.handler());
    const uint32_t generation = fork_generation();
    const int before = count_entries("/proc/self/fd");
    Child child([&] {
      if (!in_forked_child() || fork_generation() != generation + 1) return 1;
      // Two meshes of one socket and one pidfd each, and the watcher's eventfd.
      if (count_entries("/proc/self/fd") != before - 5) return 2;
      std::vector<int> reused(5);  // take the numbers of the closed ones
      for (int& descriptor : reused) descriptor = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
      liveness->say_goodbye();
      liveness.reset();
      meshes.clear();
      for (const int descriptor : reused) {
        if (::fcntl(descriptor, F_GETFD) != FD_CLOEXEC) return 3;
      }
      // A communicator of the child's own works.
      auto own = make_pair_of_meshes();
      Exits exits;
      const Liveness watcher(own[0], exits.handler());
      own[1].reset();
      return exits.wait_for(1) ? 0 : 4;
    });
    EXPECT_EQ(child.wait(), 0);
    EXPECT_EQ(parent_exits.count(), 0U);  // the child's exit hung nothing up here
    meshes[1].reset();
    EXPECT(parent_exits.wait_for(1));
  }
  leaks.verify();
}

}  // namespace dcomm::checks
