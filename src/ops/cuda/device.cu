// The CUDA device: memory, copies, and recorded work.
#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

#include "base/terminal.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/operators.h"

namespace fathom {

namespace cuda {
namespace {

// What failed in the work of the host, which runs where nothing can be thrown.
struct Failure {
  std::mutex mutex;
  std::exception_ptr error;
};

struct HostCall {
  std::function<void()> work;
  std::shared_ptr<Failure> failure;
};

}  // namespace
}  // namespace cuda

struct DeviceGraph {
  cudaGraphExec_t exec = nullptr;
  std::vector<void*> constants;  // pinned: what replays upload
  std::vector<std::unique_ptr<cuda::HostCall>> calls;
  ~DeviceGraph() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
    for (void* p : constants) cudaFreeHost(p);
  }
};

namespace cuda {

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // so that it is not told twice
  throw Error("CUDA: {}: {} ({})", what, cudaGetErrorString(result), cudaGetErrorName(result));
}

namespace {

constexpr size_t kStagingBytes = size_t{8} << 20;
constexpr size_t kStagedFrom = size_t{64} << 10;  // smaller copies the driver stages itself

// Two pinned buffers take turns: one is filled while the other is copied.
struct Stream {
  cudaStream_t stream = nullptr;
  void* staging[2] = {};
  cudaEvent_t copied[2] = {};
  DeviceGraph* recording = nullptr;
  cudaStream_t beside = nullptr;  // for what the host computes, from `begun` to `done`
  cudaEvent_t begun = nullptr, done = nullptr;
  std::shared_ptr<Failure> failure = std::make_shared<Failure>();

  ~Stream() {
    if (beside != nullptr) cudaStreamSynchronize(beside);  // the host's work may still run
    for (cudaEvent_t event : {copied[0], copied[1], begun, done}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    for (void* p : staging) cudaFreeHost(p);
    if (beside != nullptr) cudaStreamDestroy(beside);
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
};

void throw_failure(Stream& s) {
  const std::lock_guard lock(s.failure->mutex);
  if (s.failure->error) std::rethrow_exception(std::exchange(s.failure->error, nullptr));
}

void run_call(void* data) {
  auto& call = *static_cast<HostCall*>(data);
  try {
    call.work();
  } catch (...) {
    const std::lock_guard lock(call.failure->mutex);
    if (!call.failure->error) call.failure->error = std::current_exception();
  }
}
void run_call_once(void* data) {
  const std::unique_ptr<HostCall> call(static_cast<HostCall*>(data));
  run_call(call.get());
}

Stream& stream_of(const Device& device) { return *static_cast<Stream*>(device.state.get()); }

Buffer allocate(size_t bytes) {
  if (bytes == 0) return {};
  void* p = nullptr;
  if (const cudaError_t result = cudaMalloc(&p, bytes); result == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    throw Error("out of GPU memory: could not allocate {}, of {} {} are free; try a smaller format, context or batch",
                human_bytes(static_cast<double>(bytes)), human_bytes(static_cast<double>(total)),
                human_bytes(static_cast<double>(free_bytes)));
  } else {
    check(result, "cudaMalloc");
  }
  return {p, bytes, [](void* data, size_t) { cudaFree(data); }};
}

size_t free_bytes() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

void upload(const Device& device, void* to, const void* from, size_t bytes) {
  Stream& s = stream_of(device);
  if (s.recording != nullptr) {
    void* constant = nullptr;
    check(cudaHostAlloc(&constant, bytes, cudaHostAllocDefault), "cudaHostAlloc");
    s.recording->constants.push_back(constant);
    std::memcpy(constant, from, bytes);
    check(cudaMemcpyAsync(to, constant, bytes, cudaMemcpyHostToDevice, s.stream), "a copy to the GPU");
    return;
  }
  if (bytes < kStagedFrom) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, s.stream), "a copy to the GPU");
    return;
  }
  int turn = 0;
  for (size_t done = 0; done < bytes; done += kStagingBytes, turn ^= 1) {
    const size_t n = std::min(kStagingBytes, bytes - done);
    check(cudaEventSynchronize(s.copied[turn]), "a copy to the GPU");
    std::memcpy(s.staging[turn], static_cast<const char*>(from) + done, n);
    check(cudaMemcpyAsync(static_cast<char*>(to) + done, s.staging[turn], n, cudaMemcpyHostToDevice, s.stream),
          "a copy to the GPU");
    check(cudaEventRecord(s.copied[turn], s.stream), "cudaEventRecord");
  }
}

void download(const Device& device, void* to, const void* from, size_t bytes) {
  Stream& s = stream_of(device);
  FATHOM_CHECK(s.recording == nullptr);
  for (cudaEvent_t event : s.copied) check(cudaEventSynchronize(event), "a copy to the GPU");
  for (size_t done = 0; done < bytes || done == 0; done += kStagingBytes) {
    const size_t n = std::min(kStagingBytes, bytes - done);
    check(cudaMemcpyAsync(s.staging[0], static_cast<const char*>(from) + done, n, cudaMemcpyDeviceToHost, s.stream),
          "a copy from the GPU");
    check(cudaStreamSynchronize(s.stream), "the work before a copy from the GPU");
    throw_failure(s);
    std::memcpy(static_cast<char*>(to) + done, s.staging[0], n);
  }
}

void copy(const Device& device, void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(device).stream), "a copy on the GPU");
}

void fill_zero(const Device& device, void* to, size_t bytes) {
  check(cudaMemsetAsync(to, 0, bytes, stream_of(device).stream), "cudaMemset");
}

void synchronize(const Device& device) {
  Stream& s = stream_of(device);
  check(cudaStreamSynchronize(s.stream), "the work on the GPU");
  check(cudaStreamSynchronize(s.beside), "the host's work beside the GPU");
  throw_failure(s);
}

Buffer allocate_pinned(size_t bytes) {
  if (bytes == 0) return {};
  void* p = nullptr;
  check(cudaHostAlloc(&p, bytes, cudaHostAllocDefault), "cudaHostAlloc");
  return {p, bytes, [](void* data, size_t) { cudaFreeHost(data); }};
}

void start_host(const Device& device, HostWork given) {
  Stream& s = stream_of(device);
  check(cudaEventRecord(s.begun, s.stream), "cudaEventRecord");
  check(cudaStreamWaitEvent(s.beside, s.begun), "cudaStreamWaitEvent");
  for (const HostWork::Copy& copy : given.down) {
    check(cudaMemcpyAsync(copy.to, copy.from, copy.bytes, cudaMemcpyDeviceToHost, s.beside), "a copy from the GPU");
  }
  auto call = std::make_unique<HostCall>(HostCall{std::move(given.work), s.failure});
  if (s.recording != nullptr) {
    s.recording->calls.push_back(std::move(call));
    check(cudaLaunchHostFunc(s.beside, run_call, s.recording->calls.back().get()), "cudaLaunchHostFunc");
  } else {
    check(cudaLaunchHostFunc(s.beside, run_call_once, call.get()), "cudaLaunchHostFunc");
    (void)call.release();  // run_call_once has it now
  }
  for (const HostWork::Copy& copy : given.up) {
    check(cudaMemcpyAsync(copy.to, copy.from, copy.bytes, cudaMemcpyHostToDevice, s.beside), "a copy to the GPU");
  }
  check(cudaEventRecord(s.done, s.beside), "cudaEventRecord");
}

void join_host(const Device& device) {
  Stream& s = stream_of(device);
  check(cudaStreamWaitEvent(s.stream, s.done), "cudaStreamWaitEvent");
}

std::shared_ptr<DeviceGraph> record(const Device& device, const std::function<void()>& work) {
  Stream& s = stream_of(device);
  auto result = std::make_shared<DeviceGraph>();
  check(cudaStreamBeginCapture(s.stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  s.recording = result.get();
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    s.recording = nullptr;
    cudaStreamEndCapture(s.stream, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  s.recording = nullptr;
  check(cudaStreamEndCapture(s.stream, &graph), "cudaStreamEndCapture");
  const cudaError_t instantiated = cudaGraphInstantiate(&result->exec, graph, 0);
  cudaGraphDestroy(graph);
  check(instantiated, "cudaGraphInstantiate");
  return result;
}

void replay(const Device& device, DeviceGraph& graph) {
  check(cudaGraphLaunch(graph.exec, stream_of(device).stream), "cudaGraphLaunch");
}

std::shared_ptr<Stream> make_stream() {
  auto s = std::make_shared<Stream>();
  check(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "cudaStreamCreate");
  for (int i = 0; i < 2; ++i) {
    check(cudaHostAlloc(&s->staging[i], kStagingBytes, cudaHostAllocDefault), "cudaHostAlloc");
    check(cudaEventCreateWithFlags(&s->copied[i], cudaEventDisableTiming), "cudaEventCreate");
  }
  check(cudaStreamCreateWithFlags(&s->beside, cudaStreamNonBlocking), "cudaStreamCreate");
  for (cudaEvent_t* event : {&s->begun, &s->done}) {
    check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreate");
  }
  return s;
}

}  // namespace
}  // namespace cuda

std::unique_ptr<Device> open_cuda_device(int index) {
  int n_devices = 0;
  if (const cudaError_t result = cudaGetDeviceCount(&n_devices); result != cudaSuccess) {
    cudaGetLastError();
    throw Error("--device cuda: no GPU can be used ({}); use --device cpu", cudaGetErrorString(result));
  }
  if (index >= n_devices) {
    throw Error("--device cuda:{}: there are {} GPUs, counted from 0; use --device cuda:{} or cpu", index, n_devices,
                std::max(0, n_devices - 1));
  }
  cuda::check(cudaSetDevice(index), "cudaSetDevice");
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  if (properties.major < 8) {
    throw Error("--device cuda:{}: {} has compute capability {}.{}, and 8.0 is the least; use --device cpu", index,
                properties.name, properties.major, properties.minor);
  }
  const std::shared_ptr<cuda::Stream> stream = cuda::make_stream();
  auto device = std::make_unique<Device>();
  device->name = properties.name;
  device->operators = cuda::cuda_operators();
  device->stream = stream->stream;
  device->state = stream;
  device->n_processors = properties.multiProcessorCount;
  device->memory_bytes = properties.totalGlobalMem;
  device->allocate = cuda::allocate;
  device->free_bytes = cuda::free_bytes;
  device->upload = cuda::upload;
  device->download = cuda::download;
  device->copy = cuda::copy;
  device->fill_zero = cuda::fill_zero;
  device->synchronize = cuda::synchronize;
  device->allocate_pinned = cuda::allocate_pinned;
  device->start_host = cuda::start_host;
  device->join_host = cuda::join_host;
  device->record = cuda::record;
  device->replay = cuda::replay;
  return device;
}

std::string cuda_build_text() { return fmt::format("CUDA {}.{}", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10); }

}  // namespace fathom
