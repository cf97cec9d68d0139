#include "parallel/nccl.h"

#include "base/error.h"

#ifdef FATHOM_NCCL
#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "parallel/ordered_transport.h"
#endif

namespace fathom {

#ifndef FATHOM_NCCL

std::unique_ptr<Communicator> join_nccl(Communicator&, int) {
  throw Error("this program was built without NCCL; install CUDA and NCCL and build it again with -DFATHOM_CUDA=ON");
}
std::string nccl_build_text() { return "NCCL: not built"; }

#else

namespace {

// Messages that are begun hold multiprocessors of the GPU until the other rank has begun them too, and NCCL does not
// promise that communicators move on beside each other: they do where the GPU has room for all that is begun. So it is
// little, with streams of its own: 4 kernels of 16 blocks at most, of an A100's 108 multiprocessors.
constexpr int kAtATime = 2;
constexpr int kBlocks = 16;
// Both sides cut alike, whether their memory is the host's or not.
constexpr size_t kPieceBytes = size_t{8} << 20;

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // so that it is not told twice
  throw Error("CUDA: {}: {} ({})", what, cudaGetErrorString(result), cudaGetErrorName(result));
}
void check(ncclResult_t result, const char* what) {
  if (result == ncclSuccess) return;
  throw Error("NCCL: {}: {} ({})", what, ncclGetErrorString(result), ncclGetLastError(nullptr));
}

bool is_on_device(const void* memory, int device) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, memory), "looking where a message's memory lies");
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != device) {
    throw Error("NCCL: a message's memory lies on GPU {}, its rank is on GPU {}", attributes.device, device);
  }
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

// A directed pair has a communicator of its own, in which the sender is 0 and the receiver 1: in one for both
// directions, or for all ranks, a message would wait for those that were begun before it. Streams belong to places of
// messages and not to pairs, so that they are few.
class Nccl : public OrderedTransport {
 public:
  Nccl(Communicator& host, int device)
      : rank_(host.rank()), device_(device), comms_(static_cast<size_t>(2 * host.size())) {
    try {
      open(host);
    } catch (const Error&) {
      abort();
      throw;
    }
  }
  ~Nccl() override {
    for_each_pair([](ncclComm_t& comm, int, int) {
      if (comm != nullptr) ncclCommDestroy(comm);
    });
    close();
  }

  int at_a_time() const override { return kAtATime; }
  Handle begin_send(int to, std::span<const std::byte> data) override {
    return begin(0, {.comm = comm_of(rank_, to), .peer = to, .from = data.data(), .n_bytes = data.size()});
  }
  Handle begin_receive(int from, std::span<std::byte> data) override {
    return begin(kAtATime, {.comm = comm_of(from, rank_), .peer = from, .to = data.data(), .n_bytes = data.size()});
  }

  bool done(Handle handle) override {
    check(cudaSetDevice(device_), "choosing the GPU");  // each thread has its own
    Place& place = places_[static_cast<size_t>(handle)];
    Message& m = place.message;
    const cudaError_t arrived = cudaEventQuery(place.arrived);
    if (arrived == cudaErrorNotReady) {
      cudaGetLastError();
      ncclResult_t state = ncclSuccess;
      check(ncclCommGetAsyncError(m.comm, &state), "looking at a message");
      if (state != ncclSuccess && state != ncclInProgress) {
        throw Error("NCCL: a message {} rank {} failed: {} ({})", m.from != nullptr ? "to" : "from", m.peer,
                    ncclGetErrorString(state), ncclGetLastError(m.comm));
      }
      return false;
    }
    check(arrived, "a message");
    if (m.is_staged && m.to != nullptr) std::memcpy(m.to + m.at - m.n_piece, place.pinned, m.n_piece);
    if (m.at < m.n_bytes) {
      begin_pieces(place);
      return false;
    }
    m = {};
    return true;
  }

  void abort() override {
    for (ncclComm_t& comm : comms_) {
      if (comm != nullptr) ncclCommAbort(comm);
      comm = nullptr;
    }
  }

 private:
  struct Message {
    ncclComm_t comm = nullptr;
    int peer = 0;
    const std::byte* from = nullptr;  // of a send
    std::byte* to = nullptr;          // of a receive
    size_t n_bytes = 0;               // 0: the place is free
    bool is_staged = false;
    size_t at = 0, n_piece = 0;  // behind the last piece that is begun, and its length
  };
  struct Place {
    cudaStream_t stream = nullptr;
    cudaEvent_t arrived = nullptr;
    void* pinned = nullptr;
    void* staged = nullptr;  // on the GPU
    Message message{};
  };

  ncclComm_t& comm_of(int from, int to) {
    return from == rank_ ? comms_[static_cast<size_t>(2 * to)] : comms_[static_cast<size_t>(2 * from + 1)];
  }
  // Of this rank, in an order in which all ranks do it: making and destroying them waits for the other one.
  template <class Work>
  void for_each_pair(const Work& work) {
    const int size = static_cast<int>(comms_.size()) / 2;
    for (int distance = 1; distance < size; ++distance) {
      for (int from = 0; from < size; ++from) {
        const int to = (from + distance) % size;
        if (from == rank_ || to == rank_) work(comm_of(from, to), from, to);
      }
    }
  }

  void open(Communicator& host) {
    check(cudaSetDevice(device_), "choosing the GPU");
    int least = 0, greatest = 0;  // what computes leaves room to messages, not the other way round
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    // All that the GPU might have to wait for is done before there are messages.
    for (Place& place : places_) {
      check(cudaStreamCreateWithPriority(&place.stream, cudaStreamNonBlocking, greatest), "cudaStreamCreate");
      check(cudaEventCreateWithFlags(&place.arrived, cudaEventDisableTiming), "cudaEventCreate");
      check(cudaHostAlloc(&place.pinned, kPieceBytes, cudaHostAllocDefault), "cudaHostAlloc");
      check(cudaMalloc(&place.staged, kPieceBytes), "cudaMalloc");
    }
    for_each_pair([&](ncclComm_t& comm, int from, int to) {
      ncclUniqueId id{};
      const auto bytes = std::as_writable_bytes(std::span(&id, 1));
      if (from == rank_) {
        check(ncclGetUniqueId(&id), "making an id");
        host.wait(host.send(to, kControlTag, bytes));
      } else {
        host.wait(host.receive(from, kControlTag, bytes));
      }
      ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
      config.blocking = 1;
      config.maxCTAs = kBlocks;
      check(ncclCommInitRankConfig(&comm, 2, id, from == rank_ ? 0 : 1, &config), "joining the other GPUs");
      // The first message connects both, for which each waits.
      const Place& place = places_[from == rank_ ? 0 : kAtATime];
      check(from == rank_ ? ncclSend(place.staged, 1, ncclChar, 1, comm, place.stream)
                          : ncclRecv(place.staged, 1, ncclChar, 0, comm, place.stream),
            "a first message");
      check(cudaStreamSynchronize(place.stream), "a first message");
    });
  }

  void close() {
    for (Place& place : places_) {
      if (place.stream != nullptr) cudaStreamDestroy(place.stream);
      if (place.arrived != nullptr) cudaEventDestroy(place.arrived);
      cudaFreeHost(place.pinned);
      cudaFree(place.staged);
    }
  }

  Handle begin(int first_place, const Message& message) {
    check(cudaSetDevice(device_), "choosing the GPU");
    const auto place = std::find_if(places_.begin() + first_place, places_.begin() + first_place + kAtATime,
                                    [](const Place& each) { return each.message.n_bytes == 0; });
    FATHOM_CHECK(place != places_.begin() + first_place + kAtATime);
    place->message = message;
    const void* const memory = message.from != nullptr ? message.from : message.to;
    place->message.is_staged = !is_on_device(memory, device_);
    begin_pieces(*place);
    return static_cast<Handle>(place - places_.begin());
  }

  // All of them, or one where it takes the way over pinned memory.
  void begin_pieces(Place& place) {
    Message& m = place.message;
    do {
      m.n_piece = std::min(kPieceBytes, m.n_bytes - m.at);
      if (m.from != nullptr) {
        const void* from = m.from + m.at;
        if (m.is_staged) {
          std::memcpy(place.pinned, from, m.n_piece);
          check(cudaMemcpyAsync(place.staged, place.pinned, m.n_piece, cudaMemcpyHostToDevice, place.stream),
                "a copy to the GPU");
          from = place.staged;
        }
        check(ncclSend(from, m.n_piece, ncclChar, 1, m.comm, place.stream), "sending");
      } else {
        void* const to = m.is_staged ? place.staged : m.to + m.at;
        check(ncclRecv(to, m.n_piece, ncclChar, 0, m.comm, place.stream), "receiving");
        if (m.is_staged) {
          check(cudaMemcpyAsync(place.pinned, to, m.n_piece, cudaMemcpyDeviceToHost, place.stream),
                "a copy from the GPU");
        }
      }
      m.at += m.n_piece;
    } while (!m.is_staged && m.at < m.n_bytes);
    check(cudaEventRecord(place.arrived, place.stream), "cudaEventRecord");
  }

  const int rank_, device_;
  std::vector<ncclComm_t> comms_;             // [2 * other rank + (0: to it, 1: from it)]
  std::array<Place, 2 * kAtATime> places_{};  // of sends, of receives
};

}  // namespace

std::unique_ptr<Communicator> join_nccl(Communicator& host, int device) {
  return communicate_over(std::make_unique<Nccl>(host, device), host);
}

std::string nccl_build_text() {
  int version = 0;
  check(ncclGetVersion(&version), "ncclGetVersion");
  return fmt::format("NCCL {}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

#endif

}  // namespace fathom
