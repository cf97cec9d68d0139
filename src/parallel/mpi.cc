#include "parallel/mpi.h"

#include <cstdlib>
#include <string_view>

#include "base/error.h"

#ifdef FATHOM_MPI
#include <mpi.h>

#include <atomic>
#include <climits>
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

std::unique_ptr<Communicator> join_mpi() {
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

// Large messages go on only while somebody looks at them: a thread does, beside the one that computes.
class Mpi : public Communicator {
 public:
  Mpi(int rank, int size) : Communicator(rank, size), looks_([this] { look(); }) {}
  ~Mpi() override {
    stops_ = true;
    looks_.join();
    int ended = 0;
    MPI_Finalized(&ended);
    if (ended == 0) MPI_Finalize();
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
    return n_started_;
  }

  static bool test(Pieces& pieces) {
    int all = 0;
    check(MPI_Testall(static_cast<int>(pieces.size()), pieces.data(), &all, MPI_STATUSES_IGNORE), "waiting");
    return all != 0;
  }

  void look() {
    while (!stops_) {
      std::this_thread::sleep_for(std::chrono::microseconds(n_on_their_way_ > 0 ? 50 : 500));
      if (n_on_their_way_ == 0 || !mutex_.try_lock()) continue;
      int flag = 0;
      MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);  // moves all of them on
      mutex_.unlock();
    }
  }

  std::mutex mutex_;  // MPI is called by one thread at a time
  std::unordered_map<Transfer, Pieces> on_their_way_;
  std::atomic<int64_t> n_on_their_way_ = 0;
  Transfer n_started_ = 0;
  std::atomic<bool> stops_ = false;
  std::thread looks_;
};

}  // namespace

std::unique_ptr<Communicator> join_mpi() {
  int provided = 0, rank = 0, size = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "joining the others");
  if (provided < MPI_THREAD_SERIALIZED) throw Error("this MPI lets only one thread call it; fathom needs two");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return std::make_unique<Mpi>(rank, size);
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
