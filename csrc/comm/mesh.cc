// Mesh: meeting, pairing, first barrier; then small collectives of set-up. Floor: comm.
//
// A rank that fails tells the others why before it hangs up (send_abort), so that all ranks raise the same.
#include "comm/mesh.h"

#include <unistd.h>

#include "base/error.h"
#include "base/failpoint.h"
#include "comm/exchange.h"
#include "comm/fork_guard.h"
#include "comm/meeting.h"
#include "comm/pairing.h"
#include "comm/unix_socket.h"

namespace dcomm {

struct Mesh::State {
  MeshOptions options;
  Token token{};
  std::vector<GuardedFd> sockets;  // index = rank; own entry empty
  std::vector<GuardedFd> pidfds;
  std::vector<Peer> peers;
  uint32_t num_exchanges = 0;

  void set_up(Waiter& waiter);
  void open_peers();
  ExchangeResult exchange(ExchangeRequest request, Waiter& waiter);
  ExchangeResult exchange(ExchangeRequest request);

  template <class Step>
  auto or_tell_all(const Step& step);
};

namespace {

void check_options(const MeshOptions& options) {
  DCOMM_CHECK(options.world_size >= 1 && options.world_size <= kMaxRanks, ErrorCode::kInvalidArgument, "world_size is ",
              options.world_size, ", expected 1 to ", kMaxRanks);
  DCOMM_CHECK(options.rank >= 0 && options.rank < options.world_size, ErrorCode::kInvalidArgument, "rank is ",
              options.rank, ", expected 0 to ", options.world_size - 1);
  DCOMM_CHECK(options.timeout.count() > 0, ErrorCode::kInvalidArgument, "the timeout is ", options.timeout.count(),
              " ns, expected more than 0");
}

Hello make_hello(const MeshOptions& options) {
  Hello hello;
  hello.protocol = options.protocol_version;
  hello.rank = options.rank;
  hello.world_size = options.world_size;
  hello.init_counter = options.init_counter;
  hello.config_hash = options.config_hash;
  hello.launcher = options.launcher_id != 0 ? options.launcher_id : process_identity(::getppid());
  hello.token = meeting_token(options);
  hello.version = options.package_version;
  fill_random(hello.listener.data(), hello.listener.size());
  return hello;
}

/// What the peers are told of a failure here: a timeout or a lost rank is theirs too, the rest names us.
void tell_failure(const std::vector<GuardedFd>& sockets, int rank, const Error& error) {
  const std::string text = error.what();
  const std::string prefix = text.rfind("rank", 0) == 0 ? "" : "rank " + std::to_string(rank) + " failed: ";
  const bool ours = error.code() == ErrorCode::kInterrupted || error.code() == ErrorCode::kAborted;
  const NamedRanks ranks = ours ? NamedRanks{{rank, ::getpid()}} : error.ranks();
  send_abort(sockets, {ours ? ErrorCode::kPeerLost : error.code(), prefix + text, ranks});
}

}  // namespace

/// Runs a step of set-up; whatever it throws is told to the peers first.
template <class Step>
auto Mesh::State::or_tell_all(const Step& step) {
  try {
    return step();
  } catch (const Error& error) {
    tell_failure(sockets, options.rank, error);
    throw;
  } catch (...) {
    send_abort(sockets, {ErrorCode::kPeerLost,
                         "rank " + std::to_string(options.rank) + " was interrupted",
                         {{options.rank, ::getpid()}}});
    throw;
  }
}

void Mesh::State::set_up(Waiter& waiter) {
  const Hello own = make_hello(options);
  const GuardedFd listener = listen_abstract(listener_name(own.listener));
  DCOMM_CHECK(listener, ErrorCode::kInternal, "a random socket name was taken: ", listener_name(own.listener));
  Meeting meeting = options.rank == 0 ? host_meeting(options, own, waiter) : join_meeting(options, own, waiter);
  token = meeting.token;
  failpoint("before_pairing");
  or_tell_all([&] { pair_with_all(options, &meeting, listener, &sockets, waiter); });
  failpoint("after_pairing");
  open_peers();
  exchange({}, waiter);  // a barrier: from here on every pair is connected
  failpoint("mesh_made");
  close_meeting(options, &meeting);
}

void Mesh::State::open_peers() {
  for (size_t rank = 0; rank < sockets.size(); ++rank) {
    PeerIdentity identity;
    if (sockets[rank] && identify_peer(sockets[rank].get(), &identity)) {
      pidfds[rank] = open_pidfd(sockets[rank].get(), identity.pid);
      peers[rank] = {sockets[rank].get(), pidfds[rank].get(), identity.pid};
    }
  }
}

ExchangeResult Mesh::State::exchange(ExchangeRequest request, Waiter& waiter) {
  request.sequence = num_exchanges++;
  return or_tell_all([&] { return run_exchange(options.rank, sockets, std::move(request), waiter); });
}

ExchangeResult Mesh::State::exchange(ExchangeRequest request) {
  Waiter waiter(options.timeout, options.on_wait);
  return exchange(std::move(request), waiter);
}

Mesh::Mesh() : state_(std::make_unique<State>()) {}
Mesh::~Mesh() = default;  // in a forked child the GuardedFds do nothing

std::unique_ptr<Mesh> Mesh::connect(const MeshOptions& options) {
  check_options(options);
  install_fork_guard();
  std::unique_ptr<Mesh> mesh(new Mesh);
  State& state = *mesh->state_;
  state.options = options;
  state.sockets.resize(static_cast<size_t>(options.world_size));
  state.pidfds.resize(static_cast<size_t>(options.world_size));
  state.peers.resize(static_cast<size_t>(options.world_size));
  if (options.world_size == 1) {
    fill_random(state.token.data(), state.token.size());
    return mesh;
  }
  Waiter waiter(options.timeout, options.on_wait);
  state.set_up(waiter);
  return mesh;
}

int Mesh::rank() const { return state_->options.rank; }
int Mesh::world_size() const { return state_->options.world_size; }
const Token& Mesh::token() const { return state_->token; }
const Mesh::Peer& Mesh::peer(int rank) const { return state_->peers[static_cast<size_t>(rank)]; }

std::vector<std::vector<uint8_t>> Mesh::all_gather(const std::vector<uint8_t>& own) {
  ExchangeRequest request;
  request.kind = ExchangeKind::kAllGather;
  request.payload = own;
  return state_->exchange(std::move(request)).payloads;
}

std::vector<uint8_t> Mesh::broadcast_from_zero(const std::vector<uint8_t>& own) {
  ExchangeRequest request;
  request.kind = ExchangeKind::kBroadcast;
  request.sends = rank() == 0;
  request.receives_from = rank() == 0 ? ExchangeRequest::kNobody : 0;
  if (rank() == 0) request.payload = own;
  return std::move(state_->exchange(std::move(request)).payloads.front());
}

std::vector<int> Mesh::exchange_descriptors(int own_descriptor) {
  ExchangeRequest request;
  request.kind = ExchangeKind::kDescriptors;
  request.descriptor = own_descriptor;
  ExchangeResult result = state_->exchange(std::move(request));
  std::vector<int> descriptors(result.descriptors.size(), -1);
  for (size_t i = 0; i < descriptors.size(); ++i) descriptors[i] = result.descriptors[i].release();
  return descriptors;
}

void Mesh::barrier() { state_->exchange({}); }

}  // namespace dcomm
