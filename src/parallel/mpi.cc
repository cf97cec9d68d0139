#include "parallel/mpi.h"

#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "base/terminal.h"

#ifdef FATHOM_MPI
#include <mpi.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>
#endif

namespace fathom {

namespace {

// Of this process, by who has started it: Open MPI's mpirun, or Slurm's srun with PMIx or PMI2.
const char* rank_in_environment() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (const char* const rank = std::getenv(name)) return rank;
  }
  return nullptr;
}

}  // namespace

bool started_by_mpi() { return rank_in_environment() != nullptr; }

bool is_first_of_mpi() {
  const char* const rank = rank_in_environment();
  return rank == nullptr || std::string_view(rank) == "0";
}

#ifndef FATHOM_MPI

std::unique_ptr<Communicator> join_mpi(double) {
  throw Error("this program was built without MPI; install libopenmpi-dev and build it again");
}
std::string mpi_build_text() { return "MPI: not built"; }

#else

namespace {

// What MPI counts in an int.
constexpr size_t kPieceBytes = size_t{1} << 30;

void check(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Error("MPI: {}: {}", what, std::string_view(text, static_cast<size_t>(length)));
}

// What a rank tells now and then of itself.
struct Beat {
  char doing[120];  // nothing: it leaves
};

// Watches over the rank before, as the next one does over this: of those that are stopped together, as on a machine
// that is gone, one has a neighbour who is not. To be called by one thread, which may call MPI.
class Watch {
 public:
  Watch(int rank, int size, double hang_s) : next_((rank + 1) % size), hang_s_(hang_s) {
    if (size == 1) return;
    check(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "joining the others");
    watched_ = {(rank + size - 1) % size, monotonic_s()};
    receive();
  }

  // Why the job must end; empty where all is well.
  std::string look() {
    if (comm_ == MPI_COMM_NULL) return "";
    int arrived = watched_.left ? 0 : 1;
    while (arrived != 0) {
      MPI_Test(&watched_.request, &arrived, MPI_STATUS_IGNORE);
      if (arrived == 0) break;
      watched_.heard_s = monotonic_s();
      watched_.last = watched_.incoming;
      watched_.left = watched_.last.doing[0] == '\0';
      if (watched_.left) break;
      receive();
    }
    const double silent_s = monotonic_s() - watched_.heard_s;
    if (watched_.left || silent_s < hang_s_) return "";
    return fmt::format(
        "rank {} has not been heard of for {:.0f} s, it was at: {}; it is stopped, or its machine is gone",
        watched_.rank, silent_s, watched_.last.doing[0] != '\0' ? watched_.last.doing : "its beginning");
  }

  void tell(const std::string& doing) {
    if (comm_ == MPI_COMM_NULL) return;
    int gone = 1;
    if (sent_ != MPI_REQUEST_NULL) MPI_Test(&sent_, &gone, MPI_STATUS_IGNORE);
    if (gone == 0) return;  // the watcher has not taken the one before
    outgoing_ = {};
    doing.copy(outgoing_.doing, sizeof outgoing_.doing - 1);
    MPI_Isend(&outgoing_, sizeof outgoing_, MPI_BYTE, next_, 0, comm_, &sent_);
  }

  void leave() {
    if (comm_ == MPI_COMM_NULL) return;
    if (sent_ != MPI_REQUEST_NULL) MPI_Wait(&sent_, MPI_STATUS_IGNORE);
    tell("");
    MPI_Request_free(&sent_);
    if (watched_.left) return;
    MPI_Cancel(&watched_.request);
    MPI_Request_free(&watched_.request);
  }

 private:
  struct Watched {
    int rank = 0;
    double heard_s = 0;
    Beat last{};
    MPI_Request request = MPI_REQUEST_NULL;
    Beat incoming{};
    bool left = false;
  };
  void receive() {
    MPI_Irecv(&watched_.incoming, sizeof watched_.incoming, MPI_BYTE, watched_.rank, 0, comm_, &watched_.request);
  }

  const int next_;
  const double hang_s_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  Watched watched_;
  MPI_Request sent_ = MPI_REQUEST_NULL;
  Beat outgoing_{};
};

// Ends this process where it does not come out of its scope in time, and by that the job.
class Deadline {
 public:
  Deadline(double seconds, const char* message)
      : thread_([this, seconds, message] {
          std::unique_lock lock(mutex_);
          if (over_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return left_; })) return;
          std::fputs(message, stderr);
          std::_Exit(1);
        }) {}
  ~Deadline() {
    {
      const std::lock_guard lock(mutex_);
      left_ = true;
    }
    over_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool left_ = false;
  std::thread thread_;
};

// Large messages go on only while somebody looks at them: a thread does, beside the one that computes.
class Mpi : public Communicator {
 public:
  Mpi(int rank, int size, double hang_s)
      : Communicator(rank, size), hang_s_(hang_s), watch_(rank, size, hang_s), looks_([this] { look(); }) {}
  ~Mpi() override {
    stops_ = true;
    looks_.join();
    int ended = 0;
    MPI_Finalized(&ended);
    if (ended != 0) return;
    const Deadline deadline(hang_s_, "fathom: the job's processes have not all left together within --hang-timeout\n");
    watch_.leave();
    MPI_Finalize();
  }

  void tell(const std::string& what) override {
    const std::lock_guard lock(telling_);
    doing_ = what;
  }

  Transfer send(int to, int tag, std::span<const std::byte> data) override {
    return start(data.size(), [&](size_t at, int n, MPI_Request* request) {
      check(MPI_Isend(data.data() + at, n, MPI_BYTE, to, tag, MPI_COMM_WORLD, request), "sending");
    });
  }
  Transfer receive(int from, int tag, std::span<std::byte> data) override {
    return start(data.size(), [&](size_t at, int n, MPI_Request* request) {
      check(MPI_Irecv(data.data() + at, n, MPI_BYTE, from, tag, MPI_COMM_WORLD, request), "receiving");
    });
  }

  bool done(Transfer transfer) override {
    const std::lock_guard lock(mutex_);
    const auto found = on_their_way_.find(transfer);
    FATHOM_CHECK(found != on_their_way_.end());
    if (!test(found->second)) return false;
    on_their_way_.erase(found);
    --n_on_their_way_;
    ++n_changes_;
    return true;
  }

  void fail(const std::string& message) override {
    std::fputs(("fathom: " + message + "\n").c_str(), stderr);
    MPI_Abort(MPI_COMM_WORLD, 1);
    std::_Exit(1);
  }

 private:
  using Pieces = std::vector<MPI_Request>;

  template <class Begin>
  Transfer start(size_t bytes, const Begin& begin) {
    const std::lock_guard lock(mutex_);
    Pieces& pieces = on_their_way_[++n_started_];
    size_t at = 0;
    do {
      const size_t n = std::min(kPieceBytes, bytes - at);
      begin(at, static_cast<int>(n), &pieces.emplace_back());
      at += n;
    } while (at < bytes);
    ++n_on_their_way_;
    ++n_changes_;
    return n_started_;
  }

  static bool test(Pieces& pieces) {
    int all = 0;
    check(MPI_Testall(static_cast<int>(pieces.size()), pieces.data(), &all, MPI_STATUSES_IGNORE), "waiting");
    return all != 0;
  }

  void look() {
    constexpr double kBeatS = 0.5, kEagerS = 1;  // behind which what is on its way is waited for, not worked for
    double beat_s = 0, changed_s = 0;
    int64_t n_before = -1;
    while (!stops_) {
      if (const int64_t n = n_changes_; n != n_before) {
        n_before = n;
        changed_s = monotonic_s();
      }
      const bool eager = n_on_their_way_ > 0 && monotonic_s() - changed_s < kEagerS;
      std::this_thread::sleep_for(std::chrono::microseconds(eager ? 50 : 500));
      const bool beats = monotonic_s() - beat_s > kBeatS;
      if ((n_on_their_way_ == 0 && !beats) || !mutex_.try_lock()) continue;
      std::string trouble;
      if (beats) {
        beat_s = monotonic_s();
        {
          const std::lock_guard lock(telling_);
          watch_.tell(doing_);
        }
        trouble = watch_.look();
      } else {
        int flag = 0;
        MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);  // moves all of them on
      }
      mutex_.unlock();
      if (!trouble.empty()) fail(trouble);
    }
  }

  const double hang_s_;
  std::mutex mutex_;  // MPI is called by one thread at a time
  std::unordered_map<Transfer, Pieces> on_their_way_;
  std::atomic<int64_t> n_on_their_way_ = 0, n_changes_ = 0;
  Transfer n_started_ = 0;
  std::mutex telling_;
  std::string doing_ = "its beginning";
  std::atomic<bool> stops_ = false;
  Watch watch_;
  std::thread looks_;
};

}  // namespace

std::unique_ptr<Communicator> join_mpi(double hang_s) {
  // Before they have joined nobody can say who is missing.
  const Deadline deadline(hang_s, "fathom: the job's processes have not all come together within --hang-timeout\n");
  int provided = 0, rank = 0, size = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "joining the others");
  if (provided < MPI_THREAD_SERIALIZED) throw Error("this MPI lets only one thread call it; fathom needs two");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  constexpr int kMostTag = 1 << 21;  // behind those of pipelines' messages and experts' rows (parallel/stage.cc)
  int* most_tag = nullptr;
  int is_known = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, static_cast<void*>(&most_tag), &is_known);
  if (is_known != 0 && *most_tag < kMostTag) {
    throw Error("this MPI numbers messages up to {}, fathom needs {}; Open MPI's ob1 and UCX have more", *most_tag,
                kMostTag);
  }
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return std::make_unique<Mpi>(rank, size, hang_s);
}

std::string mpi_build_text() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  std::string version(text, static_cast<size_t>(length));
  version.resize(std::min(version.find_first_of(",\n"), version.size()));
  return "MPI: " + version;
}

#endif

}  // namespace fathom
