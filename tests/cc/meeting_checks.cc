// Checks of the meeting at rank 0: mismatches, garbled hellos, two jobs with one key, other users.
#include "comm/meeting.h"

#include <atomic>
#include <random>

#include "comm/hello.h"
#include "comm/unix_socket.h"
#include "rank_threads.h"

namespace dcomm::checks {
namespace {

constexpr char kOtherJob[] = "another job holds this meeting point; set DCOMM_JOB_ID";

std::vector<Outcome> connect_all(const std::vector<MeshOptions>& ranks) {
  std::vector<std::function<void()>> tasks;
  for (const MeshOptions& options : ranks) tasks.emplace_back([&options] { Mesh::connect(options)->barrier(); });
  return run_threads(tasks);
}

std::vector<MeshOptions> three_ranks() {
  const std::string key = fresh_key();
  return {options_for(0, 3, key), options_for(1, 3, key), options_for(2, 3, key)};
}

void expect_all(const std::vector<MeshOptions>& ranks, ErrorCode code, const std::vector<std::string>& texts) {
  const NoLeakedDescriptors leaks;
  const auto start = std::chrono::steady_clock::now();
  const auto outcomes = connect_all(ranks);
  for (const Outcome& outcome : outcomes) {
    for (const std::string& text : texts) EXPECT_ERROR(outcome, code, text);
  }
  EXPECT(seconds_since(start) < 2);
  leaks.verify();
}

Hello hello_of(const MeshOptions& options) {
  Hello hello;
  hello.rank = options.rank;
  hello.world_size = options.world_size;
  hello.launcher = options.launcher_id;
  hello.version = options.package_version;
  return hello;
}

GuardedFd knock(const MeshOptions& options) {
  for (;;) {
    if (GuardedFd socket = connect_abstract(meeting_name(options, 0))) return socket;
    std::this_thread::yield();
  }
}

void sleep_ms(int duration) { std::this_thread::sleep_for(std::chrono::milliseconds(duration)); }

}  // namespace

CHECK_CASE(meeting_version_mismatch_is_named_by_all) {
  auto ranks = three_ranks();
  ranks[1].package_version = "1.1";
  expect_all(ranks, ErrorCode::kVersionMismatch, {"rank 0 has 1.0 (", "rank 1 has 1.1 (", "rank 2 has 1.0 ("});
  ranks = three_ranks();
  ranks[2].protocol_version = 7;
  expect_all(ranks, ErrorCode::kVersionMismatch, {"rank 0 has 1.0 (protocol 1)", "rank 2 has 1.0 (protocol 7)"});
  ranks = three_ranks();
  ranks[1].package_version = "1.1";
  ranks.pop_back();  // a rank that never comes does not hold the verdict up
  expect_all(ranks, ErrorCode::kVersionMismatch, {"rank 1 has 1.1"});
}

CHECK_CASE(meeting_other_mismatches_are_named_by_all) {
  auto ranks = three_ranks();
  ranks[2].world_size = 4;
  expect_all(ranks, ErrorCode::kInvalidArgument, {"world_size differs: rank 0 has 3, rank 2 has 4"});
  ranks = three_ranks();
  ranks[2].world_size = 8;
  ranks[2].rank = 5;
  expect_all(ranks, ErrorCode::kInvalidArgument, {"world_size differs: rank 0 has 3, rank 5 has 8"});
  ranks = three_ranks();
  ranks[1].config_hash = 17;
  expect_all(ranks, ErrorCode::kInvalidArgument, {"rank 0 has 0, rank 1 has 17"});
  ranks = three_ranks();
  ranks[1].init_counter = 5;
  expect_all(ranks, ErrorCode::kInvalidArgument, {"in the same order", "rank 0 has 0, rank 1 has 5"});
}

CHECK_CASE(meeting_hello_survives_a_round_trip_and_nothing_else) {
  Hello hello = hello_of(options_for(3, 8, ""));
  hello.token.fill(9);
  hello.version = std::string(100, 'v');
  const HelloBytes good = encode_hello(hello);
  const auto decoded = decode_hello(good.data(), good.size());
  EXPECT(decoded && decoded->rank == 3 && decoded->world_size == 8 && decoded->token == hello.token);
  EXPECT_EQ(decoded->version, std::string(71, 'v'));
  std::mt19937 random(1);
  std::vector<uint8_t> bytes;
  for (int i = 0; i < 100'000; ++i) {
    bytes.assign(good.begin(), good.end());
    if (i % 2 == 0) {
      bytes[random() % bytes.size()] ^= static_cast<uint8_t>(1 + random() % 255);
    } else {
      bytes.resize(random() % bytes.size());
    }
    EXPECT(!decode_hello(bytes.data(), bytes.size()));
    decode_reply(bytes.data(), bytes.size());
    decode_pair_hello(bytes.data(), bytes.size());
  }
}

// What a rank tells another one of an error, whole, cut off, and garbled.
CHECK_CASE(meeting_errors_travel_with_their_ranks) {
  const std::string text = "rank 0 (pid 71) and rank 2 ended";
  const std::string packed = pack_error(text, {{0, 71, 41}, {2}});
  for (size_t length = 0; length <= packed.size(); ++length) {
    const Error heard = unpack_error(ErrorCode::kPeerLost, packed.substr(0, length));
    EXPECT(heard.code() == ErrorCode::kPeerLost);
    EXPECT_EQ(std::string(heard.what()), text.substr(0, length));
    EXPECT_EQ(heard.ranks().size(), size_t{length == packed.size() ? 2u : length > packed.find(';') ? 1u : 0u});
    if (heard.ranks().empty()) continue;
    EXPECT_EQ(heard.ranks()[0].rank, 0);
    EXPECT_EQ(heard.ranks()[0].pid, 71);
    EXPECT_EQ(heard.ranks()[0].last_seq, int64_t{41});
  }
  const Error heard = unpack_error(ErrorCode::kPeerLost, packed);
  EXPECT_EQ(heard.ranks()[1].rank, 2);
  EXPECT_EQ(heard.ranks()[1].pid, 0);
  EXPECT_EQ(heard.ranks()[1].last_seq, int64_t{-1});
  EXPECT_EQ(pack_error(text, {}), text);
  for (const char* const tail : {"1/2;", "x/y/z;", "1/2/3", ";;", "1 2 3;"}) {
    EXPECT(unpack_error(ErrorCode::kTimeout, text + '\0' + tail).ranks().empty());
  }
}

CHECK_CASE(meeting_garbled_hellos_do_not_disturb_the_job) {
  const NoLeakedDescriptors leaks;
  const auto ranks = three_ranks();
  std::atomic<bool> flooded{false};
  const auto flood = [&] {
    std::mt19937 random(2);
    const HelloBytes good = encode_hello(hello_of(ranks[1]));
    std::vector<GuardedFd> silent;
    for (int i = 0; i < 4000; ++i) {
      GuardedFd socket = knock(ranks[0]);
      std::vector<uint8_t> bytes(good.begin(), good.end());
      if (i % 3 == 0) bytes.resize(1 + random() % 4096);
      for (size_t j = 0; j < bytes.size(); j += 1 + random() % 64) bytes[j] ^= static_cast<uint8_t>(1 + random() % 255);
      if (i % 40 == 0) {
        silent.push_back(std::move(socket));  // says nothing at all
      } else {
        send_packet(socket.get(), bytes.data(), bytes.size());
      }
    }
    flooded = true;
    sleep_ms(100);
  };
  const auto late_rank = [&](size_t rank) {
    while (!flooded) sleep_ms(1);
    Mesh::connect(ranks[rank])->barrier();
  };
  expect_no_errors(run_threads({[&] { Mesh::connect(ranks[0])->barrier(); }, flood,
                                [&] { Mesh::connect(ranks[1])->barrier(); }, [&] { late_rank(2); }}));
  leaks.verify();
}

CHECK_CASE(meeting_second_claim_to_a_rank_is_refused) {
  const NoLeakedDescriptors leaks;
  const auto ranks = three_ranks();
  Outcome second;
  const auto stray = [&] {
    sleep_ms(100);
    second = run_threads({[&] { Mesh::connect(ranks[1]); }})[0];
  };
  const auto last = [&] {
    sleep_ms(250);
    Mesh::connect(ranks[2])->barrier();
  };
  expect_no_errors(run_threads(
      {[&] { Mesh::connect(ranks[0])->barrier(); }, [&] { Mesh::connect(ranks[1])->barrier(); }, stray, last}));
  EXPECT_ERROR(second, ErrorCode::kInvalidArgument, "rank 1 already joined");
  EXPECT_ERROR(second, ErrorCode::kInvalidArgument, kOtherJob);
  leaks.verify();
}

CHECK_CASE(meeting_rank_of_another_launcher_yields_its_seat) {
  const NoLeakedDescriptors leaks;
  const auto ranks = three_ranks();
  MeshOptions stranger = ranks[1];
  stranger.launcher_id = 2;
  Outcome refused;
  const auto ours = [&] {  // arrives while rank 0 waits whether a full table with a stranger is a group
    sleep_ms(400);
    Mesh::connect(ranks[1])->barrier();
  };
  expect_no_errors(
      run_threads({[&] { Mesh::connect(ranks[0])->barrier(); }, [&] { Mesh::connect(ranks[2])->barrier(); },
                   [&] { refused = run_threads({[&] { Mesh::connect(stranger); }})[0]; }, ours}));
  EXPECT_ERROR(refused, ErrorCode::kInvalidArgument, kOtherJob);
  leaks.verify();
}

CHECK_CASE(meeting_ranks_of_different_launchers_can_be_one_job) {
  auto ranks = three_ranks();  // started by hand from three shells: one second of doubt
  ranks[1].launcher_id = 2;
  ranks[2].launcher_id = 3;
  expect_no_errors(connect_all(ranks));
}

CHECK_CASE(meeting_another_rank_0_gives_its_ranks_away) {
  const NoLeakedDescriptors leaks;
  const auto ranks = three_ranks();
  std::vector<MeshOptions> others = ranks;
  for (MeshOptions& options : others) options.launcher_id = 2;
  std::vector<Outcome> refused(3);
  const auto other = [&](size_t rank, int delay_ms, Outcome* outcome) {
    sleep_ms(delay_ms);
    *outcome = run_threads({[&] { Mesh::connect(others[rank]); }})[0];
  };
  const auto late = [&] {  // later than the second that a full table with a stranger waits
    sleep_ms(1500);
    Mesh::connect(ranks[1])->barrier();
  };
  expect_no_errors(run_threads({[&] { Mesh::connect(ranks[0])->barrier(); },
                                [&] { Mesh::connect(ranks[2])->barrier(); }, [&] { other(1, 100, &refused[0]); },
                                [&] { other(0, 200, &refused[1]); }, [&] { other(1, 300, &refused[2]); }, late}));
  for (const Outcome& outcome : refused) EXPECT_ERROR(outcome, ErrorCode::kInvalidArgument, kOtherJob);
  leaks.verify();
}

CHECK_CASE(meeting_two_jobs_never_mix) {
  const NoLeakedDescriptors leaks;
  std::mt19937 random(3);
  int num_groups = 0;
  for (int round = 0; round < 5; ++round) {
    const std::string key = fresh_key();
    std::vector<int> launchers_seen(8, 0);
    std::vector<std::function<void()>> tasks;
    for (size_t i = 0; i < 8; ++i) {
      MeshOptions options = options_for(static_cast<int>(i % 4), 4, key, 1.5);
      options.launcher_id = 1 + i / 4;
      const int delay_ms = static_cast<int>(random() % 20);
      tasks.emplace_back([&launchers_seen, options, delay_ms, i] {
        sleep_ms(delay_ms);
        const auto mesh = Mesh::connect(options);
        for (const auto& one : mesh->all_gather({static_cast<uint8_t>(options.launcher_id)})) {
          launchers_seen[i] |= one[0];
        }
      });
    }
    const auto outcomes = run_threads(tasks);
    for (size_t i = 0; i < 8; ++i) {
      if (!outcomes[i]) {
        EXPECT_EQ(launchers_seen[i], static_cast<int>(1 + i / 4));
        num_groups += i % 4 == 0;
      } else if (outcomes[i]->code() != ErrorCode::kTimeout) {  // a timeout: came after the other group had formed
        EXPECT_ERROR(outcomes[i], ErrorCode::kInvalidArgument, kOtherJob);
      }
    }
  }
  EXPECT(num_groups >= 4);
  leaks.verify();
}

CHECK_CASE(meeting_rank_0_takes_over_from_a_vanishing_one) {
  const NoLeakedDescriptors leaks;
  const std::string key = fresh_key();
  Outcome former;  // a former incarnation of two ranks, whose second one never came
  const auto wait_in_vain = [&] { former = run_threads({[&] { Mesh::connect(options_for(0, 2, key, 0.4)); }})[0]; };
  const auto next = [&](int rank, int delay_ms) {
    sleep_ms(delay_ms);
    Mesh::connect(options_for(rank, 2, key))->barrier();
  };
  expect_no_errors(run_threads({wait_in_vain, [&] { next(0, 150); }, [&] { next(1, 700); }}));
  EXPECT_ERROR(former, ErrorCode::kTimeout, "rank 1 did not arrive");
  leaks.verify();
}

CHECK_CASE(meeting_other_users_are_skipped) {
  if (kUnderTsan || ::geteuid() != 0) return;  // needs a second user
  const NoLeakedDescriptors leaks;
  const auto ranks = three_ranks();
  int ready[2];
  EXPECT_EQ(::pipe(ready), 0);
  {
    Child squatter([&] {
      if (::setuid(65534) != 0) return 1;
      const GuardedFd first = listen_abstract(meeting_name(ranks[0], 0));  // listens
      if (::write(ready[1], "x", 1) != 1) return 1;
      for (;;) {  // and knocks at the true door
        if (const GuardedFd socket = connect_abstract(meeting_name(ranks[0], 1))) {
          const HelloBytes bytes = encode_hello(hello_of(ranks[1]));
          send_packet(socket.get(), bytes.data(), bytes.size());
        }
        ::usleep(200);
      }
      return 0;
    });
    char byte;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    expect_no_errors(connect_all(ranks));
  }
  ::close(ready[0]);
  ::close(ready[1]);
  leaks.verify();
}

}  // namespace dcomm::checks
