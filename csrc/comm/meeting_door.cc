// Binding the name at which rank 0 meets the others. Floor: comm. Who may hold it already: meeting.h.
#include <sys/socket.h>

#include "base/error.h"
#include "comm/meeting.h"

namespace dcomm {
namespace {

constexpr std::chrono::seconds kTakeOverTime{2};              // for a former incarnation to vanish
constexpr std::chrono::milliseconds kUnknownHolderTime{100};  // bound, but nobody listens

class DoorOpener {
 public:
  DoorOpener(const MeshOptions& options, const Hello& own, Waiter& waiter)
      : options_(options), hello_(encode_hello(own)), waiter_(waiter), give_up_at_(Clock::now() + kTakeOverTime) {}

  GuardedFd open() {
    for (int index = 0; index < num_meeting_names(options_); ++index) {
      if (GuardedFd door = try_name(meeting_name(options_, index))) return door;
    }
    throw_error(ErrorCode::kInvalidArgument, "all ", num_meeting_names(options_), " names of the meeting point ",
                meeting_name(options_, 0), " are held by other users; set DCOMM_JOB_ID to another value");
  }

 private:
  /// The listener, or empty when another user holds the name. Throws when another job of ours keeps it.
  GuardedFd try_name(const std::string& name) {
    Clock::time_point unknown_until = Clock::now() + kUnknownHolderTime;
    for (;;) {
      if (GuardedFd door = listen_abstract(name)) return door;
      const GuardedFd holder = connect_abstract(name);
      PeerIdentity identity;
      const bool known = holder && identify_peer(holder.get(), &identity);
      if (known && !is_own_user(identity)) return {};
      if (!known && Clock::now() >= unknown_until) return {};
      if (known) {
        ask(holder, identity.pid);
        unknown_until = Clock::now() + kUnknownHolderTime;
      }
      waiter_.sleep_for(std::chrono::milliseconds(5));
      if (waiter_.expired()) throw_held("the time is over");
    }
  }

  /// Knocks at the door of another rank 0. Returns when it has hung up; throws when it stays.
  void ask(const GuardedFd& holder, pid_t pid) {
    send_packet(holder.get(), hello_.data(), hello_.size());
    std::vector<uint8_t> buffer(kMaxReplyBytes);
    const std::string who = "process " + std::to_string(pid) + " is rank 0";
    for (;;) {
      size_t nbytes = 0;
      const IoStatus status = receive_packet(holder.get(), buffer.data(), buffer.size(), &nbytes);
      if (status == IoStatus::kClosed && Clock::now() < give_up_at_) return;
      if (status != IoStatus::kWouldBlock) throw_held(who);
      std::vector<pollfd> wanted{{holder.get(), POLLIN, 0}};
      if (!waiter_.wait(wanted, give_up_at_)) throw_held(who);
    }
  }

  [[noreturn]] void throw_held(const std::string& why) {
    throw Error(ErrorCode::kInvalidArgument, other_job_text(options_, why));
  }

  const MeshOptions& options_;
  const HelloBytes hello_;
  Waiter& waiter_;
  const Clock::time_point give_up_at_;
};

}  // namespace

GuardedFd open_door(const MeshOptions& options, const Hello& own, Waiter& waiter) {
  return DoorOpener(options, own, waiter).open();
}

}  // namespace dcomm
