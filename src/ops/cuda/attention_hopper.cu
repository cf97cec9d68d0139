// A block takes 64 heads of a token and some tiles of 64 rows of its sequence. With 128 heads the work is bound by the
// tensor cores: 242 operations a byte of cache. O [64, 512] in f32 is half of a multiprocessor's registers, so that two
// warpgroups hold it, 256 columns each. Tiles go to them in turn: the even one's scores are the first warpgroup's work,
// the odd one's the second's, and each tile's P then multiplies V's left half in the first, its right half in the
// second. While one makes a softmax, the other keeps the tensor cores busy. A thread of a third feeds tiles, by halves,
// through the copy engine.
//
// Work is divided by tiles, not by tokens: every pair (with 128 heads) of blocks takes as many tiles as the next. A
// token whose tiles lie in several shares leaves partial results, which a second kernel adds in the order of the
// shares.
#include "ops/cuda/attention_hopper.h"
#include "ops/cuda/hopper.h"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace fathom::cuda {

#if !defined(__CUDACC__)

bool mla_decode_hopper(Context&, const HopperDecode&) { return false; }

#else

namespace {

using namespace hopper;

constexpr int kKeys = 64;      // rows of a tile
constexpr int kHeads = 64;     // of a block
constexpr int kLatent = 512;   // columns of a row that are values
constexpr int kColumns = 576;  // all
constexpr int kRowBytes = 2 * kColumns;
constexpr int kBlockBytes = 64 * 128;  // 64 rows of 64 columns, which is how matrices lie in shared memory
constexpr int kTileBytes = kColumns / 64 * kBlockBytes;
constexpr int kHalfBlocks = kLatent / 2 / 64;                          // of V's half
constexpr int kLeftBytes = kHalfBlocks * kBlockBytes;                  // a tile's first half of V
[[maybe_unused]] constexpr int kRightBytes = kTileBytes - kLeftBytes;  // its second, and the rotated keys
[[maybe_unused]] constexpr int kRopeAt = kTileBytes - kBlockBytes;     // of a tile
constexpr int kMinTiles = 2;  // of a share: less is not worth another partial result
[[maybe_unused]] constexpr int kConsumers = 256;
constexpr int kThreads = 384;                 // the others feed, and lend their registers
[[maybe_unused]] constexpr float kSlack = 8;  // a maximum may be passed by 2^8 before sums are scaled anew

// Of Q's blocks, the last: these every consumer holds in registers, as reading both factors from shared memory takes
// as long as multiplying them.
[[maybe_unused]] constexpr int kHeldBlocks = 1;

// Shared memory, from a multiple of 1024 on.
[[maybe_unused]] constexpr int kQueryAt = 0;
constexpr int kTilesAt = kTileBytes;  // two
constexpr int kOddWeightsAt =
    kTilesAt + 2 * kTileBytes;                          // P of odd tiles; that of even ones replaces their rotated keys
constexpr int kMaximaAt = kOddWeightsAt + kBlockBytes;  // [2, 64] f32: after the newest even and odd tile
constexpr int kSumsAt = kMaximaAt + 2 * kHeads * 4;     // [2, 2, 64] f32: by turn and warpgroup
constexpr int kBarriersAt = kSumsAt + 4 * kHeads * 4;
constexpr int kSharedBytes = kBarriersAt + 10 * 8;
constexpr int kSharedWithRounding = kSharedBytes + 1024;
static_assert(kSharedWithRounding <= 232448);

// Barriers, in this order.
enum Barrier { kQueryFull, kQueryFree, kLeftFull, kLeftFree = 4, kRightFull = 6, kRightFree = 8 };  // of both tiles
// Named ones.
[[maybe_unused]] constexpr int kFirstOnly = 1, kEvenReady = 2, kOddReady = 3, kDone = 4;

// Where the tokens' tiles stand in the line of all tiles, and which part of it is whose.
struct Line {
  const int* begins;  // [tokens + 1]
  int n_tokens;
  int n_shares;  // at most
};
__device__ int tiles_of_share(const Line& line) {
  const int n = line.begins[line.n_tokens];
  return max(kMinTiles, (n + line.n_shares - 1) / line.n_shares);
}

struct DecodeCall {
  Line line;
  const CUtensorMap* maps;  // [tokens]: the rows that a token sees
  const int* positions;     // [tokens]
  void* out;                // [tokens, heads, 512]
  bool out_bf16;
  float* partial;      // [shares, 2, heads, 512]: what begins before a share, and what begins in it
  float* partial_lse;  // [shares, 2, heads], base 2
  int n_heads;
  float scale_log2;
};

struct PlanCall {
  int* begins;
  CUtensorMap* maps;
  const int* positions;
  const int* sequence;
  const int64_t* rows;
  const int64_t* strides;
  int64_t layer;
  int n_tokens;
};

constexpr int kPlanThreads = 256;

// One block. `any` is a map of such rows; where they begin and how many there are is known only here.
__global__ void __launch_bounds__(kPlanThreads) plan(const PlanCall call, const __grid_constant__ CUtensorMap any) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ int sums[kPlanThreads / kWarp];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  wait_for_inputs();
  start_next();
  int before = 0;
  for (int first = 0; first < call.n_tokens; first += kPlanThreads) {
    const int t = first + thread;
    const int length = t < call.n_tokens ? max(call.positions[t] + 1, 0) : 0;
    const int tiles = (length + kKeys - 1) / kKeys;
    int end = tiles;
    for (int d = 1; d < kWarp; d *= 2) {
      const int left = __shfl_up_sync(kAllLanes, end, d);
      if (lane >= d) end += left;
    }
    if (lane == kWarp - 1) sums[thread / kWarp] = end;
    __syncthreads();
    int all = 0;
    for (int w = 0; w < kPlanThreads / kWarp; ++w) {
      if (w < thread / kWarp) end += sums[w];
      all += sums[w];
    }
    __syncthreads();
    if (t < call.n_tokens) {
      call.begins[t] = before + end - tiles;
      CUtensorMap* map = call.maps + t;
      const auto* from = reinterpret_cast<const uint4*>(&any);
      auto* to = reinterpret_cast<uint4*>(map);
#pragma unroll
      for (int i = 0; i < 8; ++i) to[i] = from[i];
      const int s = call.sequence[t];
      set_map(map, static_cast<uint64_t>(call.rows[s] + call.layer * call.strides[s]), max(length, 1));
      publish_maps();
    }
    before += all;
  }
  if (thread == 0) call.begins[call.n_tokens] = before;
#endif
}

// A token's tiles that lie in a block's share.
struct Item {
  int token, begin, end;  // tiles of the token
  bool begins_here, ends_here;
};

// Calls body(Item) for all of them, in order.
template <class Body>
__device__ __forceinline__ void for_each_item(const Line& line, int share, const Body& body) {
  const int* begins = line.begins;
  const int n = tiles_of_share(line);
  int at = share * n;
  const int end = min(at + n, begins[line.n_tokens]);
  if (at >= end) return;
  int token = 0;  // the last that begins at or before `at`, and is not empty
  for (int above = line.n_tokens; above - token > 1;) {
    const int middle = (token + above) / 2;
    (begins[middle] <= at ? token : above) = middle;
  }
  for (; at < end; ++token) {
    const int token_begin = begins[token], token_end = begins[token + 1];
    if (token_end <= at) continue;
    const int stop = min(end, token_end);
    body(Item{token, at - token_begin, stop - token_begin, at == token_begin, stop == token_end});
    at = stop;
  }
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Addresses in shared memory.
struct Places {
  uint32_t base;
  __device__ uint32_t query() const { return base + kQueryAt; }
  __device__ uint32_t tile(int i) const { return base + kTilesAt + i * kTileBytes; }
  __device__ uint32_t even_weights() const { return tile(0) + kRopeAt; }
  __device__ uint32_t odd_weights() const { return base + kOddWeightsAt; }
  __device__ uint32_t barrier(int i) const { return base + kBarriersAt + 8 * i; }
};

// One thread. Blocks of a cluster have the same tiles: each reads its part of them for all.
template <int cluster>
__device__ __forceinline__ void feed(const DecodeCall& call, const CUtensorMap& q_map, Places at, int group,
                                     int share) {
  const int n_groups = call.n_heads / kHeads;
  const int rank = group % cluster;
  const auto copy = [&](uint32_t to, const CUtensorMap* map, int c, int tile, uint32_t barrier) {
    if constexpr (cluster == 1) {
      copy_box(to + c * kBlockBytes, map, c * 64, tile * kKeys, barrier);
    } else if (c / 2 % cluster == rank) {
      copy_box_to_ranks(to + c * kBlockBytes, map, c * 64, tile * kKeys, barrier, (1 << cluster) - 1);
    }
  };
  int parities = 0;  // bit i: of the fillings of tile i's place
  int n_items = 0;
  for_each_item(call.line, share, [&](const Item& item) {
    const CUtensorMap* map = call.maps + item.token;
    see_map(map);
    wait(at.barrier(kQueryFree), (n_items & 1) ^ 1);
    arrive_expecting(at.barrier(kQueryFull), kTileBytes);
    for (int c = 0; c < kColumns / 64; ++c) {
      copy_box(at.query() + c * kBlockBytes, &q_map, c * 64, item.token * call.n_heads + group * kHeads,
               at.barrier(kQueryFull));
    }
    for (int tile = item.begin; tile < item.end; ++tile) {
      const int i = (tile - item.begin) & 1;
      const int parity = (parities >> i & 1) ^ 1;
      wait(at.barrier(kLeftFree + i), parity);
      arrive_expecting(at.barrier(kLeftFull + i), kLeftBytes);
      for (int c = 0; c < kHalfBlocks; ++c) copy(at.tile(i), map, c, tile, at.barrier(kLeftFull + i));
      wait(at.barrier(kRightFree + i), parity);
      arrive_expecting(at.barrier(kRightFull + i), kRightBytes);
      for (int c = kHalfBlocks; c < kColumns / 64; ++c) copy(at.tile(i), map, c, tile, at.barrier(kRightFull + i));
      parities ^= 1 << i;
      // The next tile but one to the L2, each group of heads its part.
      if (tile + 2 < item.end) {
        for (int c = group; c < kColumns / 64; c += n_groups) prefetch_box(map, c * 64, (tile + 2) * kKeys);
      }
    }
    ++n_items;
  });
}

// What a thread keeps of its rows, lane / 4 and that + 8 of its warp's 16.
struct Rows {
  float maximum[2];  // in log2, of what was seen
  float sum[2];      // of this thread's columns of this warpgroup's tiles
};

// New maxima: O and the sums so far become smaller by 2^(old - new). Mostly they stay.
__device__ __forceinline__ void rescale(float (&o)[128], Rows& rows, const float (&maximum)[2]) {
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    factor[r] = exp2_fast(rows.maximum[r] - maximum[r]);
    rows.maximum[r] = maximum[r];
    rows.sum[r] *= factor[r];
  }
  if (!__any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
  for (int i = 0; i < 128; ++i) o[i] *= factor[i / 2 % 2];
}

constexpr int kHeldWords = (kHeldBlocks > 0 ? kHeldBlocks : 1) * 16;

// Q's last blocks as the products take them: of a warp's 16 rows.
__device__ __forceinline__ void hold_query(uint32_t (&held)[kHeldWords], const unsigned char* query, int warp,
                                           int lane) {
  const int row = warp * 16 + lane % 16;
#pragma unroll
  for (int i = 0; i < kHeldBlocks * 4; ++i) {
    const int block = kColumns / 64 - kHeldBlocks + i / 4, chunk = i % 4 * 2 + lane / 16;
    uint32_t words[4];
    load_matrices(words, query + block * kBlockBytes + row * 128 + ((chunk ^ (row & 7)) << 4));
#pragma unroll
    for (int k = 0; k < 4; ++k) held[4 * i + k] = words[k];
  }
}

// s [64, 64] = Q K', as K's halves come
__device__ __forceinline__ void multiply_keys(float (&s)[32], const uint32_t (&held)[kHeldWords], Places at, int tile,
                                              int parity) {
  const uint64_t q = describe_rows(at.query()), k = describe_rows(at.tile(tile));
  const auto offset = [](int i) { return (i / 4 * kBlockBytes + i % 4 * 32) >> 4; };
  constexpr int kSteps = kColumns / 16, kHeldFrom = kSteps - kHeldBlocks * 4;
  wait(at.barrier(kLeftFull + tile), parity);
  begin_products();
  multiply_64x64x16<false>(s, q, k);
#pragma unroll
  for (int i = 1; i < kHalfBlocks * 4; ++i) multiply_64x64x16<true>(s, q + offset(i), k + offset(i));
  wait(at.barrier(kRightFull + tile), parity);
  begin_products();
#pragma unroll
  for (int i = kHalfBlocks * 4; i < kHeldFrom; ++i) multiply_64x64x16<true>(s, q + offset(i), k + offset(i));
#pragma unroll
  for (int i = kHeldFrom; i < kSteps; ++i) multiply_64x64x16(s, held + 4 * (i - kHeldFrom), k + offset(i));
  commit_products();
}

// The maxima when this tile's scores are seen too.
__device__ __forceinline__ void new_maxima(float (&maximum)[2], const float (&s)[32], const float (&old)[2],
                                           float scale_log2) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = s[2 * r];
#pragma unroll
    for (int j = 0; j < 8; ++j) top = fmaxf(top, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2)) * scale_log2;
    maximum[r] = top > old[r] + kSlack ? top : old[r];
  }
}

// p = 2^(s - maximum) in bf16, as the products take it; sums of the thread's own.
__device__ __forceinline__ void make_weights(uint32_t (&p)[16], float (&sum)[2], float (&s)[32],
                                             const float (&maximum)[2], float scale_log2) {
  sum[0] = sum[1] = 0;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    s[i] = exp2_fast(fmaf(s[i], scale_log2, -maximum[i / 2 % 2]));
    sum[i / 2 % 2] += s[i];
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

// Words 2j and 2j + 1 are columns 8j + 2 (lane % 4) and the next of the thread's two rows.
__device__ __forceinline__ void store_weights(uint32_t to, const uint32_t (&p)[16], int row, int lane) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const uint32_t address = to + row * 128 + ((j ^ (row & 7)) << 4) + lane % 4 * 4;
    store_shared(address, p[2 * j]);
    store_shared(address + 8 * 128, p[2 * j + 1]);
  }
}

// o [64, 256] += P V, V's half at v, P in registers or at p
__device__ __forceinline__ void multiply_values(float (&o)[128], const uint32_t (&p)[16], uint32_t v) {
  const uint64_t b = describe_columns<kBlockBytes>(v);
  begin_products();
#pragma unroll
  for (int i = 0; i < kKeys / 16; ++i) multiply_64x256x16(o, p + 4 * i, b + (i * 16 * 128 >> 4));
  commit_products();
}
__device__ __forceinline__ void multiply_values(float (&o)[128], uint32_t p, uint32_t v) {
  const uint64_t a = describe_rows(p), b = describe_columns<kBlockBytes>(v);
  begin_products();
#pragma unroll
  for (int i = 0; i < kKeys / 16; ++i) multiply_64x256x16(o, a + (i * 32 >> 4), b + (i * 16 * 128 >> 4));
  commit_products();
}

// A warpgroup, the first or the second.
template <int which, int cluster>
struct Consumer {
  const DecodeCall& call;
  Places at;
  const unsigned char* query;
  float* maxima;        // [2, 64] in shared memory
  float* sums;          // [2, 2, 64]
  int warp, lane, row;  // row: the first of the thread's two

  float o[128];
  uint32_t held[kHeldWords];
  Rows rows;
  int used[2] = {0, 0};
  int n_items = 0;

  __device__ __forceinline__ Consumer(const DecodeCall& call_of_kernel, Places places, unsigned char* shared)
      : call(call_of_kernel), at(places) {
    query = shared + kQueryAt;
    maxima = reinterpret_cast<float*>(shared + kMaximaAt);
    sums = reinterpret_cast<float*>(shared + kSumsAt);
    warp = static_cast<int>(threadIdx.x) / kWarp % 4;
    lane = static_cast<int>(threadIdx.x) % kWarp;
    row = warp * 16 + lane / 4;
  }

  __device__ __forceinline__ void release_query() const {
    if (lane == 0) arrive(at.barrier(kQueryFree));
  }
  // A half of a tile, to all who fill it.
  __device__ __forceinline__ void release(int barrier) const {
    if constexpr (cluster == 1) {
      if (lane == 0) arrive(at.barrier(barrier));
    } else {
      if (lane < cluster) arrive_at_rank(at.barrier(barrier), lane);
    }
  }

  // Scores that lie behind the token's last row.
  __device__ __forceinline__ void hide(float (&s)[32], int n_visible) const {
    if (n_visible >= kKeys) return;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= n_visible) s[i] = -INFINITY;
    }
  }

  __device__ __forceinline__ void read_maxima(float (&maximum)[2], int tile) const {
    maximum[0] = maxima[tile * kHeads + row];
    maximum[1] = maxima[tile * kHeads + row + 8];
  }
  __device__ __forceinline__ void write_maxima(const float (&maximum)[2], int tile) const {
    if (lane % 4 != 0) return;
    maxima[tile * kHeads + row] = maximum[0];
    maxima[tile * kHeads + row + 8] = maximum[1];
  }

  // The first warpgroup's part of an even tile, and of the odd one that follows where there is one.
  template <bool pair>
  __device__ __forceinline__ void first(int n_visible, bool last) {
    float s[32], maximum[2], sum[2];
    uint32_t p[16];
    multiply_keys(s, held, at, 0, used[0] & 1);
    wait_products<0>();
    settle(s);
    if (last) release_query();
    hide(s, n_visible);
    new_maxima(maximum, s, rows.maximum, call.scale_log2);
    make_weights(p, sum, s, maximum, call.scale_log2);
    write_maxima(maximum, 0);
    named_wait<kFirstOnly, 128>();  // all four warps are done with the rotated keys
    store_weights(at.even_weights(), p, row, lane);
    show_writes_to_engines();
    named_arrive<kEvenReady, kConsumers>();
    rescale(o, rows, maximum);
    rows.sum[0] += sum[0];
    rows.sum[1] += sum[1];
    multiply_values(o, p, at.tile(0));
    wait_products<0>();
    settle(o);
    settle(p);
    release(kLeftFree);
    ++used[0];
    if constexpr (pair) {
      named_wait<kOddReady, kConsumers>();
      read_maxima(maximum, 1);
      rescale(o, rows, maximum);
      wait(at.barrier(kLeftFull + 1), used[1] & 1);
      multiply_values(o, at.odd_weights(), at.tile(1));
      wait_products<0>();
      settle(o);
      release(kLeftFree + 1);
      ++used[1];
    }
  }

  // The second's, n_visible being the odd tile's.
  template <bool pair>
  __device__ __forceinline__ void second(int n_visible, bool last) {
    float s[32], maximum[2], sum[2];
    uint32_t p[16];
    if constexpr (pair) multiply_keys(s, held, at, 1, used[1] & 1);
    named_wait<kEvenReady, kConsumers>();
    read_maxima(maximum, 0);
    rescale(o, rows, maximum);
    wait(at.barrier(kRightFull), used[0] & 1);
    multiply_values(o, at.even_weights(), at.tile(0) + kLeftBytes);
    if constexpr (pair) {
      wait_products<1>();
      settle(s);
      if (last) release_query();
      hide(s, n_visible);
      new_maxima(maximum, s, rows.maximum, call.scale_log2);
      make_weights(p, sum, s, maximum, call.scale_log2);
      write_maxima(maximum, 1);
      store_weights(at.odd_weights(), p, row, lane);
      show_writes_to_engines();
      named_arrive<kOddReady, kConsumers>();
    } else {
      release_query();
    }
    wait_products<0>();
    settle(o);
    release(kRightFree);
    ++used[0];
    if constexpr (pair) {
      rescale(o, rows, maximum);
      rows.sum[0] += sum[0];
      rows.sum[1] += sum[1];
      multiply_values(o, p, at.tile(1) + kLeftBytes);
      wait_products<0>();
      settle(o);
      settle(p);
      release(kRightFree + 1);
      ++used[1];
    }
  }

  __device__ __forceinline__ void run(const Item& item, int group, int share) {
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] = 0;
    rows = {{-INFINITY, -INFINITY}, {0, 0}};
    wait(at.barrier(kQueryFull), n_items & 1);
    hold_query(held, query, warp, lane);
    const int n_rows = call.positions[item.token] + 1;
    int tile = item.begin;
    for (; tile + 1 < item.end; tile += 2) {
      const bool last = tile + 2 == item.end;
      if constexpr (which == 0) {
        first<true>(n_rows - tile * kKeys, last);
      } else {
        second<true>(n_rows - (tile + 1) * kKeys, last);
      }
    }
    if (tile < item.end) {
      if constexpr (which == 0) {
        first<false>(n_rows - tile * kKeys, true);
      } else {
        second<false>(0, true);
      }
    }
    finish(item, group, share);
    ++n_items;
  }

  // Both warpgroups' sums together, and the results.
  __device__ __forceinline__ void finish(const Item& item, int group, int share) {
    float* turn = sums + (n_items & 1) * 2 * kHeads;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows.sum[r] += __shfl_xor_sync(kAllLanes, rows.sum[r], 1);
      rows.sum[r] += __shfl_xor_sync(kAllLanes, rows.sum[r], 2);
      if (lane % 4 == 0) turn[which * kHeads + row + 8 * r] = rows.sum[r];
    }
    named_wait<kDone, kConsumers>();
    const bool whole = item.begins_here && item.ends_here;
    const int64_t slot = 2 * share + (item.begins_here ? 1 : 0);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = turn[row + 8 * r] + turn[kHeads + row + 8 * r];
      const float factor = 1.0f / sum;
      const int64_t head = group * kHeads + row + 8 * r;
      const int64_t column = which * (kLatent / 2) + lane % 4 * 2;
      const int64_t at_out = (item.token * static_cast<int64_t>(call.n_heads) + head) * kLatent + column;
      if (whole && call.out_bf16) {
        auto* to = reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(call.out) + at_out);
#pragma unroll
        for (int j = 0; j < 32; ++j) to[4 * j] = pack_bf16(o[4 * j + 2 * r] * factor, o[4 * j + 2 * r + 1] * factor);
        continue;
      }
      const int64_t at_partial = (slot * call.n_heads + head) * kLatent + column;
      auto* to = reinterpret_cast<float2*>(whole ? static_cast<float*>(call.out) + at_out : call.partial + at_partial);
#pragma unroll
      for (int j = 0; j < 32; ++j) to[4 * j] = make_float2(o[4 * j + 2 * r] * factor, o[4 * j + 2 * r + 1] * factor);
      if (!whole && which == 0 && lane % 4 == 0) {
        call.partial_lse[slot * call.n_heads + head] = rows.maximum[r] + log2f(sum);
      }
    }
  }
};

#endif  // sm_90a

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define FATHOM_CLUSTER(n)  // nothing that it knows
#else
#define FATHOM_CLUSTER(n) __cluster_dims__(n, 1, 1)
#endif

template <int cluster>
__global__ void FATHOM_CLUSTER(cluster) __launch_bounds__(kThreads, 1)
    decode(const DecodeCall call, const __grid_constant__ CUtensorMap q_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  unsigned char* shared = shared_memory<unsigned char>();
  shared += (1024 - (shared_address(shared) & 1023)) & 1023;
  const Places at{shared_address(shared)};
  if (threadIdx.x == 0) {
    make_barrier(at.barrier(kQueryFull), 1);
    make_barrier(at.barrier(kQueryFree), 8);  // a warp each
    for (int i = 0; i < 2; ++i) {
      make_barrier(at.barrier(kLeftFull + i), 1);
      make_barrier(at.barrier(kLeftFree + i), 4 * cluster);
      make_barrier(at.barrier(kRightFull + i), 1);
      make_barrier(at.barrier(kRightFree + i), 4 * cluster);
    }
    show_barriers_to_copies();
  }
  __syncthreads();
  if constexpr (cluster > 1) meet_cluster();
  wait_for_inputs();
  start_next();
  // Blocks beside each other read the same rows.
  const int n_groups = call.n_heads / kHeads;
  const int group = static_cast<int>(blockIdx.x) % n_groups, share = static_cast<int>(blockIdx.x) / n_groups;
  const int warpgroup = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
  if (warpgroup == 0) {
    take_registers<240>();
    Consumer<0, cluster> consumer(call, at, shared);
    for_each_item(call.line, share, [&](const Item& item) { consumer.run(item, group, share); });
  } else if (warpgroup == 1) {
    take_registers<240>();
    Consumer<1, cluster> consumer(call, at, shared);
    for_each_item(call.line, share, [&](const Item& item) { consumer.run(item, group, share); });
  } else {
    give_registers<24>();
    if (threadIdx.x == kConsumers) feed<cluster>(call, q_map, at, group, share);
  }
  if constexpr (cluster > 1) meet_cluster();  // others may still write here
#endif
}

// A block a head and token: what its shares have left. 128 threads, 4 columns each.
__global__ void __launch_bounds__(128) add_shares(const DecodeCall call) {
  wait_for_inputs();
  start_next();
  const int token = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x);
  const int begin = call.line.begins[token], end = call.line.begins[token + 1];
  const int n = tiles_of_share(call.line);
  const int first = begin / n, last = (end - 1) / n;
  if (end == begin || first == last) return;
  const auto slot = [&](int share) { return static_cast<int64_t>(2 * share + (share == first ? 1 : 0)); };
  const auto lse = [&](int share) { return call.partial_lse[slot(share) * call.n_heads + head]; };
  float top = -INFINITY;
  for (int share = first; share <= last; ++share) top = fmaxf(top, lse(share));
  float sum = 0;
  float4 x = make_float4(0, 0, 0, 0);
#pragma unroll 4
  for (int share = first; share <= last; ++share) {
    const float weight = exp2f(lse(share) - top);
    const float4 y =
        reinterpret_cast<const float4*>(call.partial + (slot(share) * call.n_heads + head) * kLatent)[threadIdx.x];
    sum += weight;
    x.x += weight * y.x;
    x.y += weight * y.y;
    x.z += weight * y.z;
    x.w += weight * y.w;
  }
  const float factor = 1.0f / sum;
  const int64_t at = (token * static_cast<int64_t>(call.n_heads) + head) * (kLatent / 4) + threadIdx.x;
  if (call.out_bf16) {
    static_cast<uint2*>(call.out)[at] =
        make_uint2(pack_bf16(x.x * factor, x.y * factor), pack_bf16(x.z * factor, x.w * factor));
  } else {
    static_cast<float4*>(call.out)[at] = make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
  }
}

// Rows of 576 bf16, given to the copy engine 64 by 64.
bool make_map(CUtensorMap& map, const void* rows, int64_t n_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t result =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    if (result != cudaSuccess || found != cudaDriverEntryPointSuccess) function = nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  if (encode == nullptr) return false;
  const cuuint64_t shape[2] = {kColumns, static_cast<cuuint64_t>(n_rows)}, stride[1] = {kRowBytes};
  const cuuint32_t box[2] = {64, 64}, step[2] = {1, 1};
  return encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(rows), shape, stride, box, step,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool device_is_hopper() {
  static const bool is = [] {
    int device = 0, major = 0, minor = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 &&
           minor == 0;
  }();
  return is;
}

}  // namespace

bool mla_decode_hopper(Context& ctx, const HopperDecode& d) {
  const int64_t n_tokens = d.q.shape[0], n_heads = d.q.shape[1];
  if (!device_is_hopper() || d.q.rank != 3 || d.q.format != Format::bf16 || d.q.cols() != kColumns ||
      n_heads % kHeads != 0 || d.caches.layout.format != Format::bf16 || d.caches.layout.kv_lora_rank != kLatent ||
      d.caches.layout.dim() != kColumns || !d.q.contiguous() || n_heads / kHeads > ctx.device->n_processors) {
    return false;
  }
  if (n_tokens == 0) return true;
  FATHOM_CHECK(d.out.rank == 3 && d.out.shape[0] == n_tokens && d.out.shape[1] == n_heads && d.out.cols() == kLatent &&
               d.out.contiguous() && (d.out.format == Format::f32 || d.out.format == Format::bf16));
  CUtensorMap q_map, any_map;
  if (!make_map(q_map, d.q.data, n_tokens * n_heads) || !make_map(any_map, d.q.data, kKeys)) return false;

  const int64_t n_shares = ctx.device->n_processors / (n_heads / kHeads);
  DecodeCall call{};
  auto* maps = new_tensor(ctx, Format::u8, {(n_tokens + 1) * 128}).as<uint8_t>();
  maps += (128 - reinterpret_cast<uintptr_t>(maps) % 128) % 128;
  auto* begins = new_i32(ctx, {n_tokens + 1}).i32();
  call.maps = reinterpret_cast<const CUtensorMap*>(maps);
  call.line = {begins, static_cast<int>(n_tokens), static_cast<int>(n_shares)};
  call.positions = d.caches.positions.i32();
  call.out = d.out.data;
  call.out_bf16 = d.out.format == Format::bf16;
  call.partial = new_f32(ctx, {n_shares, 2, n_heads, kLatent}).f32();
  call.partial_lse = new_f32(ctx, {n_shares, 2, n_heads}).f32();
  call.n_heads = static_cast<int>(n_heads);
  call.scale_log2 = d.scale * 1.4426950408889634f;

  const PlanCall plan_call{begins,
                           reinterpret_cast<CUtensorMap*>(maps),
                           d.caches.positions.i32(),
                           d.caches.sequence.i32(),
                           d.caches.rows.as<int64_t>(),
                           d.caches.strides.as<int64_t>(),
                           d.caches.layer,
                           static_cast<int>(n_tokens)};
  launch(ctx, plan, dim3(1), dim3(kPlanThreads), 0, plan_call, any_map);
  launch(ctx, n_heads / kHeads % 2 == 0 ? decode<2> : decode<1>,
         dim3(static_cast<unsigned>(n_shares * (n_heads / kHeads))), dim3(kThreads), kSharedWithRounding, call, q_map);
  launch(ctx, add_shares, dim3(static_cast<unsigned>(n_heads), static_cast<unsigned>(n_tokens)), dim3(128), 0, call);
  return true;
}

#endif  // __CUDACC__

}  // namespace fathom::cuda
