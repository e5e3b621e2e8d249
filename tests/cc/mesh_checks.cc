// Checks of Mesh: connecting, collectives of set-up, and what the others see when one rank fails.
#include "comm/mesh.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <algorithm>
#include <atomic>

#include "comm/hello.h"
#include "comm/meeting.h"
#include "comm/unix_socket.h"
#include "rank_threads.h"

namespace dcomm::checks {
namespace {

std::vector<uint8_t> message_of(int rank, size_t nbytes) {
  std::vector<uint8_t> bytes(nbytes);
  for (size_t i = 0; i < nbytes; ++i) bytes[i] = static_cast<uint8_t>(i * 7 + static_cast<size_t>(rank) * 31);
  return bytes;
}

void check_all_gather(Mesh& mesh, size_t nbytes) {
  // Rank r gives nbytes + r bytes (less at the limit), so that lengths differ.
  const auto length_of = [&](int rank) { return std::min(nbytes + static_cast<size_t>(rank), size_t{1} << 20); };
  const auto all = mesh.all_gather(message_of(mesh.rank(), length_of(mesh.rank())));
  for (int rank = 0; rank < mesh.world_size(); ++rank) {
    EXPECT(all[static_cast<size_t>(rank)] == message_of(rank, length_of(rank)));
  }
}

void check_descriptors(Mesh& mesh) {
  const int own = ::eventfd(static_cast<unsigned>(100 + mesh.rank()), EFD_CLOEXEC | EFD_SEMAPHORE);
  const std::vector<int> others = mesh.exchange_descriptors(own);
  for (int rank = 0; rank < mesh.world_size(); ++rank) {
    const int descriptor = others[static_cast<size_t>(rank)];
    EXPECT_EQ(descriptor >= 0, rank != mesh.rank());
    if (descriptor < 0) continue;
    EXPECT_EQ(::fcntl(descriptor, F_GETFD), FD_CLOEXEC);
    char path[64];
    std::snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    char target[64] = {};
    EXPECT(::readlink(path, target, sizeof target - 1) > 0);
    EXPECT_EQ(std::string(target), "anon_inode:[eventfd]");
    ::close(descriptor);
  }
  mesh.barrier();
  ::close(own);
}

void check_world(int world_size) {
  const NoLeakedDescriptors leaks;
  std::vector<Token> tokens(static_cast<size_t>(world_size));
  expect_no_errors(run_ranks(world_size, [&](Mesh& mesh) {
    tokens[static_cast<size_t>(mesh.rank())] = mesh.token();
    for (const size_t nbytes : {size_t{0}, size_t{5}, size_t{16384}, size_t{100'000}}) check_all_gather(mesh, nbytes);
    const auto sent = message_of(42, 70'000);
    EXPECT(mesh.broadcast_from_zero(mesh.rank() == 0 ? sent : std::vector<uint8_t>{}) == sent);
    for (int i = 0; i < 20; ++i) mesh.barrier();
    check_descriptors(mesh);
    for (int rank = 0; rank < mesh.world_size(); ++rank) {
      EXPECT_EQ(mesh.peer(rank).pid, rank == mesh.rank() ? 0 : ::getpid());
      EXPECT_EQ(mesh.peer(rank).socket >= 0, rank != mesh.rank());
    }
  }));
  for (const Token& token : tokens) EXPECT(token == tokens[0] && token != Token{});
  leaks.verify();
}

}  // namespace

CHECK_CASE(mesh_of_1_rank) { check_world(1); }
CHECK_CASE(mesh_of_2_ranks) { check_world(2); }
CHECK_CASE(mesh_of_3_ranks) { check_world(3); }
CHECK_CASE(mesh_of_8_ranks) { check_world(8); }

CHECK_CASE(mesh_messages_up_to_1_mib) {
  expect_no_errors(run_ranks(3, [](Mesh& mesh) { check_all_gather(mesh, (size_t{1} << 20) - 1); }));
  const auto outcomes = run_ranks(1, [](Mesh& mesh) { mesh.all_gather(std::vector<uint8_t>((1 << 20) + 1)); });
  EXPECT_ERROR(outcomes[0], ErrorCode::kInvalidArgument, "1048577 bytes");
}

CHECK_CASE(mesh_by_exact_token) {
  const std::string token = "00112233445566778899aabbccddee" + std::to_string(10 + ::getpid() % 90);
  const auto task = [&](int rank) {
    MeshOptions options = options_for(rank, 3, token);
    options.exact = true;
    options.launcher_id = static_cast<uint64_t>(rank) + 1;  // no matter: the token is proof enough
    Mesh::connect(options)->barrier();
  };
  const auto start = std::chrono::steady_clock::now();
  expect_no_errors(run_threads({[&] { task(0); }, [&] { task(1); }, [&] { task(2); }}));
  EXPECT(seconds_since(start) < 0.9);
  MeshOptions options = options_for(0, 2, "not hex");
  options.exact = true;
  const auto outcomes = run_threads({[&] { Mesh::connect(options); }});
  EXPECT_ERROR(outcomes[0], ErrorCode::kInvalidArgument, "32 lower-case hex digits");
}

CHECK_CASE(mesh_timeout_names_missing_ranks) {
  const NoLeakedDescriptors leaks;
  const std::string key = fresh_key();
  const auto task = [&](int rank) { Mesh::connect(options_for(rank, 4, key, 0.4)); };
  auto outcomes = run_threads({[&] { task(0); }, [&] { task(2); }});
  for (const Outcome& outcome : outcomes) EXPECT_ERROR(outcome, ErrorCode::kTimeout, "ranks 1, 3 did not arrive");
  outcomes = run_threads({[&] { task(1); }, [&] { task(2); }});
  for (const Outcome& outcome : outcomes) {
    EXPECT_ERROR(outcome, ErrorCode::kTimeout, "rank 0 did not arrive within 0.4 s");
    EXPECT_ERROR(outcome, ErrorCode::kTimeout, "MASTER_PORT");
  }
  leaks.verify();
}

CHECK_CASE(mesh_timeout_of_one_rank_is_a_timeout_of_all) {
  const std::string key = fresh_key();
  const auto task = [&](int rank, double timeout_s) { Mesh::connect(options_for(rank, 4, key, timeout_s)); };
  const auto outcomes = run_threads({[&] { task(0, 10); }, [&] { task(1, 10); }, [&] { task(2, 0.3); }});
  EXPECT_ERROR(outcomes[0], ErrorCode::kTimeout, "rank 3 did not arrive before rank 2 gave up");
  EXPECT_ERROR(outcomes[1], ErrorCode::kTimeout, "rank 3 did not arrive before rank 2 gave up");
  EXPECT_ERROR(outcomes[2], ErrorCode::kTimeout, "rank 3 did not arrive within 0.3 s");
}

CHECK_CASE(mesh_timeout_of_a_collective_names_the_silent_rank) {
  const std::string key = fresh_key();
  const auto task = [&](int rank) {
    const auto mesh = Mesh::connect(options_for(rank, 3, key, 0.4));
    if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(700));
    mesh->barrier();
  };
  const auto outcomes = run_threads({[&] { task(0); }, [&] { task(1); }, [&] { task(2); }});
  EXPECT_ERROR(outcomes[0], ErrorCode::kTimeout, "rank 1 did not answer within 0.4 s in the barrier");
  EXPECT_ERROR(outcomes[2], ErrorCode::kTimeout, "rank 1 did not answer within 0.4 s");
}

CHECK_CASE(mesh_interrupted_rank_is_named_by_all) {
  const NoLeakedDescriptors leaks;
  const std::string key = fresh_key();
  const auto start = std::chrono::steady_clock::now();
  const auto task = [&](int rank) {
    MeshOptions options = options_for(rank, 4, key);
    std::atomic<bool> connected{false};
    if (rank == 1) {
      options.on_wait = [&] {
        if (connected) throw Error(ErrorCode::kInterrupted, "Ctrl-C");
      };
    }
    const auto mesh = Mesh::connect(options);
    connected = true;
    if (rank != 3) mesh->barrier();
    if (rank == 3) std::this_thread::sleep_for(std::chrono::milliseconds(300));
  };
  const auto outcomes = run_threads({[&] { task(0); }, [&] { task(1); }, [&] { task(2); }, [&] { task(3); }});
  EXPECT_ERROR(outcomes[1], ErrorCode::kInterrupted, "Ctrl-C");
  EXPECT_ERROR(outcomes[0], ErrorCode::kPeerLost, "rank 1 failed: Ctrl-C");
  EXPECT_ERROR(outcomes[2], ErrorCode::kPeerLost, "rank 1 failed: Ctrl-C");
  EXPECT(seconds_since(start) < 5);
  leaks.verify();
}

CHECK_CASE(mesh_rank_lost_in_the_meeting_is_named_at_once) {
  const NoLeakedDescriptors leaks;
  const std::string key = fresh_key();
  const auto start = std::chrono::steady_clock::now();
  const auto impostor = [&] {  // rank 2 says hello, and ends
    const MeshOptions options = options_for(2, 4, key);
    GuardedFd socket;
    while (!(socket = connect_abstract(meeting_name(options, 0)))) std::this_thread::yield();
    Hello hello;
    hello.rank = 2;
    hello.world_size = 4;
    hello.launcher = 1;
    hello.version = "1.0";
    const HelloBytes bytes = encode_hello(hello);
    send_packet(socket.get(), bytes.data(), bytes.size());
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  };
  const auto task = [&](int rank) { Mesh::connect(options_for(rank, 4, key)); };
  const auto outcomes = run_threads({[&] { task(0); }, [&] { task(1); }, impostor});
  EXPECT_ERROR(outcomes[0], ErrorCode::kPeerLost, "rank 2 (pid");
  EXPECT_ERROR(outcomes[1], ErrorCode::kPeerLost, "rank 2 (pid");
  EXPECT(seconds_since(start) < 3);
  leaks.verify();
}

CHECK_CASE(mesh_rank_lost_after_the_meeting_is_named_at_once) {
  const NoLeakedDescriptors leaks;
  const auto start = std::chrono::steady_clock::now();
  const auto outcomes = run_ranks(4, [](Mesh& mesh) {
    if (mesh.rank() != 3) mesh.barrier();
  });
  for (size_t rank = 0; rank < 3; ++rank) EXPECT_ERROR(outcomes[rank], ErrorCode::kPeerLost, "rank 3 ended");
  EXPECT(seconds_since(start) < 3);
  leaks.verify();
}

CHECK_CASE(mesh_different_collectives_are_an_error) {
  const auto outcomes = run_ranks(2, [](Mesh& mesh) {
    if (mesh.rank() == 0) {
      mesh.barrier();
    } else {
      mesh.all_gather({1, 2, 3});
    }
  });
  EXPECT(outcomes[0] && outcomes[0]->code() == ErrorCode::kInternal);
  EXPECT(outcomes[1] && outcomes[1]->code() == ErrorCode::kInternal);
}

}  // namespace dcomm::checks
