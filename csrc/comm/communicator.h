// The Communicator: one rank's membership in a group, and its operations in call order. Floor: comm.
//
// The calling thread runs an operation itself when nothing is queued, else it queues and waits; asynchronous
// operations run on the communicator's own progress thread, started at the first of them: collectives one by one,
// messages between them side by side. After an error the
// communicator is broken: every later call raises at once with the first reason.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/listing.h"
#include "comm/mesh.h"
#include "comm/point_to_point.h"
#include "comm/region.h"
#include "comm/settings.h"
#include "comm/shared_mesh.h"
#include "comm/split.h"
#include "comm/work_queue.h"
#include "exec/host_exec.h"
#include "launch/cuda_group.h"
#include "launch/cuda_process_group.h"
#include "launch/host_launch.h"

namespace dcomm {

/// Counts since the communicator was made.
struct CommunicatorStats {
  uint64_t num_operations = 0;
  uint64_t num_bytes = 0;          // of the arrays, not of the wire
  uint64_t num_sent_bytes = 0;     // into slots and packets: on the wire
  uint64_t num_direct = 0;         // operations that were done where the arrays lie
  std::vector<int64_t> waited_ns;  // by peer: in waits longer than about 1 us
};

class Communicator {
 public:
  /// Ranks are processes of this host. Collective; blocks until all have come (options.timeout).
  static std::shared_ptr<Communicator> of_processes(const MeshOptions& options, bool force_shm,
                                                    bool deterministic = false);
  /// Ranks are threads of this process: index = rank.
  static std::vector<std::shared_ptr<Communicator>> of_threads(int world_size, bool deterministic = false);

  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return context_.rank; }
  int world_size() const { return context_.world_size; }
  const Settings& settings() const { return settings_; }
  const KernelTable& kernel_table() const { return *kernel_table_; }
  CommunicatorStats stats() const;
  std::vector<int> pids() const { return pids_; }
  /// By rank: how it has gone, as far as this rank has seen; kNone: it is there.
  std::vector<AbortDetail> exits() const;
  bool closed() const { return closed_.load(std::memory_order_acquire); }

  /// Runs `call` and returns when this rank's part is done. timeout_ns 0: the group's. Throws Error.
  /// Returns the source of the message that a recv took; else -1.
  int run(CollectiveCall call, int64_t timeout_ns, InterruptCheck interrupted);
  /// Queues `call`; its arrays must live until the Work is done. Throws Error when the communicator is
  /// broken. With patience (see set_patience) the calling thread may run it instead.
  std::shared_ptr<Work> enqueue(CollectiveCall call, int64_t timeout_ns, InterruptCheck interrupted = nullptr);
  /// enqueue() of a small collective tells the peers at once that this rank enters it, and where nothing is queued and
  /// all of them enter it too within `patience_ns`, the calling thread runs it: a wake-up of the progress thread costs
  /// more than a small message. No rank waits longer than this for another. 0 (the default): never.
  void set_patience(int64_t patience_ns) { patience_ns_ = patience_ns; }
  /// The limit of each wait where a call names none. Local: ranks may differ.
  void set_timeout(int64_t timeout_ns);

  /// Collective over all ranks: those of one color become a communicator, in the order of (key, rank). nullptr without
  /// a color. Throws the same on all ranks.
  std::shared_ptr<Communicator> split(std::optional<int64_t> color, int64_t key, int64_t timeout_ns,
                                      InterruptCheck interrupted);

  /// Collective: memory of `nbytes` bytes on every rank, zeroed, mapped by all of them. Throws the same on all ranks;
  /// kMismatch where nbytes differs.
  std::shared_ptr<Region> allocate(size_t nbytes, int64_t timeout_ns, InterruptCheck interrupted);

  /// The same in the memory of GPU `device`. Ranks that are threads: one GPU for all. kCuda, on all ranks, where one
  /// has none or no memory left; kInvalidArgument where the ranks have met on another GPU.
  std::shared_ptr<Region> allocate_on_gpu(int device, size_t nbytes, int64_t timeout_ns, InterruptCheck interrupted);

  /// Collective: sets addresses for `nbytes` bytes aside on every rank, mapped by all of them. Memory comes to a part
  /// of them by region->reserved->commit(), on one rank alone. Ranks are processes. Throws as allocate().
  std::shared_ptr<Region> reserve(size_t nbytes, int64_t timeout_ns, InterruptCheck interrupted);

  /// Collective: makes the whole pages of `array`, which must live until release(), such memory too, in place. Nothing
  /// else may use the array meanwhile. Throws as allocate(); kInvalidArgument where it is not plain memory of this
  /// process, on all ranks.
  std::shared_ptr<Region> adopt(void* array, size_t nbytes, int64_t timeout_ns, InterruptCheck interrupted);
  /// Ends what adopt() began, on this rank alone, once what is queued is done: the array is ordinary memory again.
  void release(Region& region);

  /// Any collective of arrays on a GPU. Ranks that are threads: see CudaThreadGroup::run, and with `collected`
  /// CudaThreadGroup::collect; send and recv too. Ranks that are processes: the first one is collective also on the
  /// host and makes windows on the GPU; see CudaProcessGroup::run. Threads' calls with a Work: CudaThreadGroup::post.
  void run_cuda(CudaRankCall call, bool collected);
  /// CudaThreadGroup::end_collecting.
  void end_collecting_cuda(bool complain);
  /// CudaThreadGroup::open; between processes, collective.
  void open_cuda(int device);
  /// The GPU on which the ranks have met, or, of a process, its own; -1: none so far.
  int cuda_device() const;
  /// True where `other` is a rank of the same group of threads.
  bool is_beside(const Communicator& other) const { return cuda_group_ != nullptr && cuda_group_ == other.cuda_group_; }
  /// Blocks until the last GPU operation is done and throws what the GPU reported.
  void synchronize_cuda(int64_t timeout_ns);
  /// Where ranks are threads: blocks until all ranks that take part have called, and `work` is launched or given up.
  /// When the time is over, is_final breaks the group for all; else kTimeout, and the operation may still come.
  void expect_cuda(const CudaWork& work, int64_t timeout_ns, bool is_final, InterruptCheck interrupted);
  /// expect_cuda() as long as the call said; then what is enqueued on `stream` from now on comes after the operation.
  void order_cuda(const CudaWork& work, void* stream, InterruptCheck interrupted);
  /// Takes an asynchronous call back. False: too late, it is launched or given up.
  bool withdraw_cuda(const CudaWork& work);
  /// Blocks until `work` of this communicator is over and throws what the GPU reported; kTimeout where it is still
  /// running when timeout_ns (0: its own deadline) has passed. Any thread.
  void wait_cuda(const CudaWork& work, int64_t timeout_ns, InterruptCheck interrupted);
  /// Throws what the GPU has reported so far; nothing where this communicator is closed.
  void check_cuda_reports();

  /// Ends every wait on every rank with AbortedError, whose text has `reason`; any thread.
  void abort(const std::string& reason = "");
  /// What the peers' errors say of this rank when it leaves or aborts from now on: "KeyError: 'x' at train.py:88".
  void leave_note(const std::string& reason);
  /// Where the program made this communicator, for texts: "train.py:12".
  void set_made_at(const std::string& site) { listing_.set_made_at(site); }
  /// Finishes what is queued, says goodbye to the peers, frees the windows. Idempotent.
  void close();
  /// As close(), but aborts what is still queued instead of waiting for it.
  void leave_now() { leave(false); }
  /// As leave_now(), at the end of the process, which the peers are told.
  void leave_at_exit() { leave(false, GoodbyeKind::kExits); }

  /// Fault injection for tests of overlap: every operation sleeps this long first.
  void set_test_delay_ns(int64_t delay_ns) { test_delay_ns_ = delay_ns; }

 private:
  Communicator(int rank, std::shared_ptr<Windows> windows, const Settings& settings);

  class Agreement;
  class RegionMaking;
  class CudaMaking;
  class Splitting;
  void join_mesh(std::shared_ptr<SharedMesh> mesh, uint64_t id, std::vector<int> mesh_ranks);
  void join_threads(const ThreadParts& parts, std::shared_ptr<ThreadFamily> family, uint64_t id,
                    std::vector<int> family_ranks);

  bool in_child() const;  // this process was forked from the communicator's
  void check_usable() const;
  void complete_call(CollectiveCall& call) const;
  void choose_algo(CollectiveCall& call);
  void choose_lending(CollectiveCall& call);
  void choose_cuda_algo(CollectiveCall& call);
  void check_direct(const CollectiveCall& call, bool is_shared) const;
  void check_cuda_device(int device) const;
  void execute_in_parts(const CollectiveCall& call, Range reach, int64_t timeout_ns, InterruptCheck interrupted,
                        bool background);
  CudaThreadGroup& cuda_group() const;
  bool serves_cuda_between_processes() const { return mesh_ != nullptr && cuda_group_ == nullptr; }
  std::shared_ptr<CudaProcessGroup> cuda_processes() const;
  std::shared_ptr<CudaProcessGroup> open_cuda_processes(int device, int64_t timeout_ns, InterruptCheck interrupted);
  template <class F>
  void use_cuda_processes(CudaProcessGroup& group, const F& f);
  void run_cuda_between_processes(const CudaRankCall& call);
  void synchronize_cuda_processes(int64_t timeout_ns);
  void stop_cuda(const Error& reason);
  void leave_cuda();
  int run_in_order(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted);
  void execute(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted, bool background);
  void execute_one(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted, bool background);
  bool can_announce(const CollectiveCall& call) const;
  void announce(const CollectiveCall& call);
  bool all_peers_enter() const;
  void check_lengths(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted, bool background);
  Posted posted_for(const CollectiveCall& call, int64_t timeout_ns) const;
  OpRecord message_record(const CollectiveCall& call) const;
  int execute_message(const CollectiveCall& call, int64_t timeout_ns, InterruptCheck interrupted);
  void serve_messages();
  class MessageService;
  [[noreturn]] void fail_message(const Posted& posted);
  void push(const std::shared_ptr<Work>& work);
  void begin_call(const CollectiveCall& call);
  void count_sent(uint64_t sent_bytes);
  void prepare(HostOp& op, int64_t timeout_ns, InterruptCheck interrupted, bool background);
  void set_broken(const Error& reason);
  void add_other_deaths(std::string& message, NamedRanks& ranks) const;
  [[noreturn]] void break_down(const OpRecord& record, Failure failure);
  [[noreturn]] void fail_with(const OpRecord& record, const Failure& failure, const std::string& text);
  std::string exit_status_of(const Failure& failure) const;
  void leave(bool finish_queue, GoodbyeKind kind = GoodbyeKind::kClosed);
  static void warn_stalled(void* argument, int peer, int64_t waited_ns);
  void note_call_site(uint64_t seq) const;
  void warn_message_stalled(const Posted& posted, int64_t waited_ns) const;

  uint32_t fork_generation_ = 0;
  Settings settings_;
  HostContext context_;
  LaneScratch scratch_;
  const KernelTable* kernel_table_;
  PointToPoint messages_;
  std::shared_ptr<CudaThreadGroup> cuda_group_;       // where the ranks are threads
  mutable std::mutex cuda_mutex_;                     // of the next one, which the watcher uses too
  std::shared_ptr<CudaProcessGroup> cuda_processes_;  // where they are processes; made at the first CUDA operation
  bool cuda_windows_are_kept_ = false;                // their memory may be freed only when nobody has it open
  uint64_t num_cuda_makings_ = 0;
  std::shared_ptr<ThreadFamily> family_;  // the same
  std::shared_ptr<SharedMesh> mesh_;      // where they are processes
  std::vector<int> mesh_ranks_;           // of each rank; of threads: in the communicator that all come from
  Listing listing_;                       // what the process's other communicators may say of this one
  std::vector<int> pids_;
  bool force_shm_ = false;
  uint64_t id_ = 0;  // among the communicators of one mesh
  uint64_t num_splits_ = 0;
  uint32_t num_regions_ = 0;
  RegionTable regions_;

  uint64_t seq_ = 0;
  uint64_t history_ = 0;     // fingerprint of all operations so far
  OpRecord current_;         // of the operation being run
  std::string queued_site_;  // where it was called, if that was recorded; for the progress thread
  bool announced_ = false;   // current_ is the next operation's, and the peers know
  int64_t patience_ns_ = 0;
  int64_t test_delay_ns_ = 0;
  std::atomic<uint64_t> num_operations_{0};
  std::atomic<uint64_t> num_bytes_{0};
  std::atomic<uint64_t> num_sent_bytes_{0};
  std::atomic<uint64_t> num_direct_{0};

  std::atomic<bool> entered_{false};  // a thread is inside run() or enqueue()
  std::atomic<bool> closed_{false};
  std::mutex broken_mutex_;
  std::atomic<bool> broken_{false};
  Error broken_reason_{ErrorCode::kOk, ""};  // written before broken_

  WorkQueue queue_;
};

}  // namespace dcomm
