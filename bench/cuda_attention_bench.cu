// Absorbed MLA decoding on Hopper, the attention alone: checked against a plain kernel in f64, then timed. Alone here:
//   nvcc -std=c++20 -O3 -DFMT_HEADER_ONLY=1 -DFMT_USE_CONSTEXPR=1 -Isrc -gencode=arch=compute_90a,code=sm_90a
//     bench/cuda_attention_bench.cu src/ops/cuda/attention_hopper.cu
//     src/base/{buffer,error,terminal,thread_pool,cpu}.cc -Xcompiler -ffunction-sections -Xlinker --gc-sections -o
//     cuda_attention_bench
// Prints a line for each check and each size; exit code 1 where a check fails. As argument "check" does not time, "few"
// times three sizes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "ops/cuda/attention_hopper.h"
#include "ops/cuda/kernel.h"

namespace fathom::cuda {

void check(cudaError_t result, const char* what) {
  if (result != cudaSuccess) throw Error("{}: {}", what, cudaGetErrorString(result));
}

namespace {

constexpr int kLatent = 512, kColumns = 576;
constexpr double kPeakBytes = 3.35e12, kPeakFlops = 989e12;  // an H100 SXM's, as its data sheet has them

// Numbers of about unit variance; where `growth`, row i of `length` is (0.25 + growth * i / length) times that.
__global__ void fill(uint16_t* x, int64_t n, uint32_t seed, float growth, int64_t length) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint64_t z = (i + (static_cast<uint64_t>(seed) << 40)) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    float sum = 0;
    for (int k = 0; k < 4; ++k) sum += static_cast<float>(z >> (16 * k) & 0xFFFF) * (1.0f / 65536) - 0.5f;
    sum *= 1.7320508f;
    if (growth > 0) sum *= 0.25f + growth * static_cast<float>(i / kColumns % length) / static_cast<float>(length);
    x[i] = static_cast<uint16_t>(pack_bf16(sum, 0) & 0xFFFF);
  }
}

__device__ double from_bf16(uint16_t code) { return __uint_as_float(static_cast<uint32_t>(code) << 16); }

// A block of 256 threads a head and token. scores: [tokens, heads, longest]
__global__ void reference(double* out, const uint16_t* q, const int64_t* rows, const int32_t* sequence,
                          const int32_t* positions, float scale, double* scores, int longest) {
  const int64_t t = blockIdx.y, h = blockIdx.x, row = t * gridDim.x + h;
  const auto* k = reinterpret_cast<const uint16_t*>(rows[sequence[t]]);
  double* s = scores + row * longest;
  const int n = positions[t] + 1, lane = threadIdx.x % 32;
  __shared__ double top[256], sum[256];
  for (int j = threadIdx.x / 32; j < n; j += 8) {
    double x = 0;
    for (int c = lane; c < kColumns; c += 32)
      x += from_bf16(q[row * kColumns + c]) * from_bf16(k[int64_t{j} * kColumns + c]);
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kAllLanes, x, d);
    if (lane == 0) s[j] = x * scale;
  }
  __syncthreads();
  double mine = -INFINITY;
  for (int j = threadIdx.x; j < n; j += 256) mine = fmax(mine, s[j]);
  top[threadIdx.x] = mine;
  __syncthreads();
  for (int i = 0; i < 256; ++i) mine = fmax(mine, top[i]);
  double part = 0;
  for (int j = threadIdx.x; j < n; j += 256) part += s[j] = exp(s[j] - mine);
  sum[threadIdx.x] = part;
  __syncthreads();
  double all = 0;
  for (int i = 0; i < 256; ++i) all += sum[i];
  for (int c = threadIdx.x; c < kLatent; c += 256) {
    double x = 0;
    for (int j = 0; j < n; ++j) x += s[j] * from_bf16(k[int64_t{j} * kColumns + c]);
    out[row * kLatent + c] = x / all;
  }
}

template <class T>
struct Array {
  T* data = nullptr;
  int64_t n;
  explicit Array(int64_t count) : n(count) {
    check(cudaMalloc(&data, sizeof(T) * std::max<int64_t>(n, 1)), "cudaMalloc");
  }
  Array(const std::vector<T>& host) : Array(static_cast<int64_t>(host.size())) {
    check(cudaMemcpy(data, host.data(), sizeof(T) * n, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Array(const Array&) = delete;
  ~Array() { cudaFree(data); }
  std::vector<T> host() const {
    std::vector<T> x(n);
    check(cudaMemcpy(x.data(), data, sizeof(T) * n, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return x;
  }
};

Buffer device_memory(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes), "cudaMalloc");
  check(cudaMemset(p, 0xFF, bytes), "cudaMemset");  // NaN
  return {p, bytes, [](void* data, size_t) { cudaFree(data); }};
}

struct Bench {
  ThreadPool pool{1};
  Arena arena{device_memory};
  Device device;
  Context ctx{pool, arena, &device};
  cudaStream_t stream = nullptr;

  Bench() {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    device.stream = stream;
    check(cudaDeviceGetAttribute(&device.n_processors, cudaDevAttrMultiProcessorCount, 0), "cudaDeviceGetAttribute");
  }

  void decode(const HopperDecode& call) {
    ArenaScope scope(arena);
    if (!mla_decode_hopper(ctx, call)) throw Error("not available here");
  }
};

struct Check {
  const char* name;
  int n_heads, n_queries;
  std::vector<int> lengths;
  float scale = 0.07f, growth = 0;
  bool out_bf16 = false;
};

bool run(Bench& bench, const Check& c, uint32_t seed) {
  const int64_t n_sequences = static_cast<int64_t>(c.lengths.size()), n_tokens = n_sequences * c.n_queries;
  std::vector<int64_t> first{0}, rows, strides(n_sequences, 0);
  for (const int n : c.lengths) first.push_back(first.back() + n);
  // Rows behind a sequence's are the next one's; behind the last one's stand NaN.
  const int64_t n_rows = first.back();
  Array<uint16_t> cache((n_rows + 64) * kColumns), q(n_tokens * c.n_heads * kColumns);
  check(cudaMemset(cache.data, 0xFF, cache.n * 2), "cudaMemset");
  fill<<<1024, 256>>>(q.data, q.n, seed, 0, 1);
  std::vector<int32_t> sequence, positions;
  for (int64_t s = 0; s < n_sequences; ++s) {
    uint16_t* begin = cache.data + first[s] * kColumns;
    fill<<<256, 256>>>(begin, int64_t{c.lengths[s]} * kColumns, seed + 1 + s, c.growth, c.lengths[s]);
    rows.push_back(reinterpret_cast<int64_t>(begin));
    for (int i = 0; i < c.n_queries; ++i) {
      sequence.push_back(static_cast<int32_t>(s));
      positions.push_back(std::max(c.lengths[s] - c.n_queries + i, 0));
    }
  }
  const Array<int64_t> rows_there(rows), strides_there(strides);
  const Array<int32_t> sequence_there(sequence), positions_there(positions);
  const int64_t n_out = n_tokens * c.n_heads * kLatent;
  Array<double> expected(n_out);
  {
    const int longest = *std::max_element(c.lengths.begin(), c.lengths.end());
    Array<double> scores(n_tokens * c.n_heads * longest);
    reference<<<dim3(c.n_heads, n_tokens), 256>>>(expected.data, q.data, rows_there.data, sequence_there.data,
                                                  positions_there.data, c.scale, scores.data, longest);
    check(cudaDeviceSynchronize(), "reference");
  }
  const Format format = c.out_bf16 ? Format::bf16 : Format::f32;
  Array<float> out(n_out);
  HopperDecode call;
  call.out = Tensor(out.data, format, {n_tokens, c.n_heads, kLatent});
  call.q = Tensor(q.data, Format::bf16, {n_tokens, c.n_heads, kColumns});
  call.caches = {
      Tensor(rows_there.data, Format::i64, {n_sequences}),  Tensor(strides_there.data, Format::i64, {n_sequences}),
      Tensor(sequence_there.data, Format::i32, {n_tokens}), Tensor(positions_there.data, Format::i32, {n_tokens}),
      {Format::bf16, kLatent, kColumns - kLatent},          0};
  call.scale = c.scale;
  std::vector<float> got[2];
  for (auto& g : got) {
    check(cudaMemset(out.data, 0xFF, out.n * 4), "cudaMemset");
    check(cudaDeviceSynchronize(), "before");
    bench.decode(call);
    check(cudaStreamSynchronize(bench.stream), "decode");
    g = out.host();
    if (c.out_bf16) {
      const std::vector<float> words = g;
      for (int64_t i = n_out - 1; i >= 0; --i) {
        uint16_t code;
        std::memcpy(&code, reinterpret_cast<const char*>(words.data()) + 2 * i, 2);
        const uint32_t bits = static_cast<uint32_t>(code) << 16;
        std::memcpy(&g[i], &bits, 4);
      }
    }
  }
  const bool same = std::memcmp(got[0].data(), got[1].data(), n_out * 4) == 0;
  const std::vector<double> want = expected.host();
  double error2 = 0, norm2 = 0, worst = 0, largest = 0;
  int64_t worst_row = -1;
  for (int64_t row = 0; row < n_tokens * c.n_heads; ++row) {
    double e = 0, w = 0;
    for (int64_t i = row * kLatent; i < (row + 1) * kLatent; ++i) {
      const double d = got[0][i] - want[i];
      e += d * d;
      w += want[i] * want[i];
      if (!(std::fabs(d) <= largest)) largest = std::fabs(d);
    }
    if (!(std::sqrt(e / w) <= worst)) {
      worst = std::sqrt(e / w);
      worst_row = row;
    }
    error2 += e;
    norm2 += w;
  }
  const double relative = std::sqrt(error2 / norm2);
  const bool ok = relative < 6e-3 && worst < 2e-2 && same;
  std::printf("%-34s relative %.2e, worst head %.2e (token %lld head %lld), largest %.2e%s  %s\n", c.name, relative,
              worst, static_cast<long long>(worst_row / c.n_heads), static_cast<long long>(worst_row % c.n_heads),
              largest, same ? "" : ", NOT THE SAME TWICE", ok ? "ok" : "FAIL");
  if (!ok) {
    for (const int64_t i : {int64_t{0}, int64_t{1}, int64_t{64}, int64_t{256}, int64_t{320}, int64_t{511}}) {
      const int64_t at = std::max<int64_t>(worst_row, 0) * kLatent + i;
      std::printf("    column %lld: %g, expected %g\n", static_cast<long long>(i), got[0][at], want[at]);
    }
  }
  std::fflush(stdout);
  return ok;
}

std::vector<int> lengths(int n, int low, int high, uint32_t seed) {
  std::vector<int> x(n);
  for (int& v : x) {
    seed = seed * 1664525u + 1013904223u;
    v = low + static_cast<int>((seed >> 8) % static_cast<uint32_t>(high - low + 1));
  }
  return x;
}

bool check_all(Bench& bench) {
  bool ok = true;
  uint32_t seed = 1;
  for (const int n : {1, 2, 63, 64, 65, 127, 128, 129, 200, 321, 1000, 4096, 20001}) {
    const std::string name = "1 x " + std::to_string(n);
    ok &= run(bench, {name.c_str(), 128, 1, {n}}, seed += 1000);
  }
  ok &= run(bench, {"1 x 4096, large scores", 128, 1, {4096}, 0.5f}, seed += 1000);
  ok &= run(bench, {"1 x 9000, growing scores", 128, 1, {9000}, 0.2f, 2}, seed += 1000);
  ok &= run(bench, {"3, 2 queries, 64 heads", 64, 2, {2, 64, 129}}, seed += 1000);
  ok &= run(bench, {"5, 192 heads, bf16", 192, 1, {700, 1, 64, 65, 3000}, 0.07f, 0, true}, seed += 1000);
  ok &= run(bench, {"128 x 1 .. 3000", 128, 1, lengths(128, 1, 3000, 7)}, seed += 1000);
  ok &= run(bench, {"64 x 2 .. 2000, 2 queries", 128, 2, lengths(64, 2, 2000, 8)}, seed += 1000);
  ok &= run(bench, {"64 x 64 .. 2000, growing, bf16", 128, 1, lengths(64, 64, 2000, 9), 0.3f, 2, true}, seed += 1000);
  ok &= run(bench, {"300 x 1 .. 100, 64 heads", 64, 1, lengths(300, 1, 100, 10)}, seed += 1000);
  std::printf(ok ? "all checks ok\n" : "CHECKS FAILED\n");
  std::fflush(stdout);
  return ok;
}

struct Size {
  int n_heads, n_sequences, n_queries;
  std::vector<int> lengths;
};

// Medians of rounds, each recorded as a graph of several calls over caches that the L2 cannot hold together.
void time(Bench& bench, const Size& size, const uint16_t* memory, int64_t memory_rows, const uint16_t* q) {
  const int longest = *std::max_element(size.lengths.begin(), size.lengths.end());
  int64_t total = 0;
  for (const int n : size.lengths) total += n;
  const int64_t rows_a_layer = int64_t{longest} * size.n_sequences;
  if (rows_a_layer > memory_rows) return;
  const int64_t row_bytes = kColumns * 2;
  const int64_t n_layers = std::clamp<int64_t>(400'000'000 / (rows_a_layer * row_bytes), 1,
                                               std::min<int64_t>(64, memory_rows / rows_a_layer));
  std::vector<int64_t> rows, strides;
  std::vector<int32_t> sequence, positions;
  for (int s = 0; s < size.n_sequences; ++s) {
    rows.push_back(reinterpret_cast<int64_t>(memory) + s * n_layers * longest * row_bytes);
    strides.push_back(longest * row_bytes);
    for (int i = 0; i < size.n_queries; ++i) {
      sequence.push_back(s);
      positions.push_back(size.lengths[s] - size.n_queries + i);
    }
  }
  const Array<int64_t> rows_there(rows), strides_there(strides);
  const Array<int32_t> sequence_there(sequence), positions_there(positions);
  const int64_t n_tokens = static_cast<int64_t>(positions.size());
  const Array<float> out(n_tokens * size.n_heads * kLatent);
  HopperDecode call;
  call.out = Tensor(out.data, Format::bf16, {n_tokens, size.n_heads, kLatent});
  call.q = Tensor(const_cast<uint16_t*>(q), Format::bf16, {n_tokens, size.n_heads, kColumns});
  call.caches = {Tensor(rows_there.data, Format::i64, {size.n_sequences}),
                 Tensor(strides_there.data, Format::i64, {size.n_sequences}),
                 Tensor(sequence_there.data, Format::i32, {n_tokens}),
                 Tensor(positions_there.data, Format::i32, {n_tokens}),
                 {Format::bf16, kLatent, kColumns - kLatent},
                 0};
  call.scale = 0.07f;
  bench.decode(call);  // takes memory, which a graph cannot
  check(cudaStreamSynchronize(bench.stream), "decode");
  const int n_calls = static_cast<int>(std::max<int64_t>(n_layers, 4));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  check(cudaStreamBeginCapture(bench.stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < n_calls; ++i) {
    call.caches.layer = i % n_layers;
    bench.decode(call);
  }
  check(cudaStreamEndCapture(bench.stream, &graph), "capture");
  check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> us;
  float spent = 0;
  for (int round = 0; round < 3 || (round < 40 && spent < 200); ++round) {
    check(cudaEventRecord(begin, bench.stream), "cudaEventRecord");
    check(cudaGraphLaunch(exec, bench.stream), "cudaGraphLaunch");
    check(cudaEventRecord(end, bench.stream), "cudaEventRecord");
    check(cudaEventSynchronize(end), "replay");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    spent += ms;
    if (round > 0) us.push_back(ms * 1000 / static_cast<float>(n_calls));
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(us.begin(), us.end());
  const double seconds = us[us.size() / 2] * 1e-6;
  const double flops =
      2.0 * size.n_heads * (kColumns + kLatent) * static_cast<double>(total) * size.n_queries / seconds;
  const double bytes = static_cast<double>(total * row_bytes) / seconds;
  const bool even = *std::min_element(size.lengths.begin(), size.lengths.end()) == longest;
  std::printf("%5d %5d %3d %8d%s %10.1f us %10.1f (best) %7.1f TFLOP/s %5.1f %%  %7.1f GB/s %5.1f %%\n", size.n_heads,
              size.n_sequences, size.n_queries, longest, even ? "     " : " at most", seconds * 1e6, us[0],
              flops / 1e12, 100 * flops / kPeakFlops, bytes / 1e9, 100 * bytes / kPeakBytes);
  std::fflush(stdout);
}

void time_all(Bench& bench, bool few) {
  size_t free = 0, all = 0;
  check(cudaMemGetInfo(&free, &all), "cudaMemGetInfo");
  const int64_t row_bytes = kColumns * 2;
  const int64_t n_rows =
      std::min<int64_t>(int64_t{128} * 131072, (static_cast<int64_t>(free) - (int64_t{2} << 30)) / row_bytes);
  const Array<uint16_t> memory(n_rows * kColumns), q(int64_t{256} * 128 * kColumns);
  fill<<<4096, 256>>>(memory.data, memory.n, 5, 0, 1);
  fill<<<1024, 256>>>(q.data, q.n, 6, 0, 1);
  check(cudaDeviceSynchronize(), "fill");
  std::printf("heads  seqs  qs   length\n");
  const auto even = [&](int n_heads, int n_sequences, int n_queries, int length) {
    time(bench, {n_heads, n_sequences, n_queries, std::vector<int>(n_sequences, length)}, memory.data, n_rows, q.data);
  };
  if (few) {
    even(128, 1, 1, 65536);
    even(128, 128, 1, 4096);
    even(128, 64, 1, 16384);
    return;
  }
  for (const int n_sequences : {1, 16, 64, 128}) {
    for (const int length : {4096, 16384, 65536, 131072}) even(128, n_sequences, 1, length);
  }
  even(128, 64, 2, 8192);
  even(64, 128, 1, 8192);
  time(bench, {128, 64, 1, lengths(64, 100, 32768, 3)}, memory.data, n_rows, q.data);
}

int run_all(const std::string& what) {
  Bench bench;
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  const bool ok = check_all(bench);
  if (what != "check") time_all(bench, what == "few");
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace fathom::cuda

int main(int n, char** arguments) {
  try {
    return fathom::cuda::run_all(n < 2 ? "" : arguments[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
