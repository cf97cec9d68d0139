// Absorbed attention with bf16 products, over caches of bf16 and of what becomes bf16 on the way. Keys come to shared
// memory by tiles, the next one while one is worked on, and serve as values too. Of the scores [rows, keys] every warp
// has the sum over a quarter of the columns, for half of the keys or rows; of the output [rows, rank] some columns.
//
// Weights of the softmax are rounded to bf16. So are queries, except for tiles of 16 rows (decoding with few heads),
// which memory bounds: there a query is the sum of two numbers of bf16, and scores are nearly those of f32.
#include "ops/cuda/attention_tiles.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kQuarters = 4;
constexpr int kMaxRank = 512, kMaxDim = 576;
constexpr int kGroup = 16;                              // columns of the output that are worked on together
constexpr int kMaxGroups = kMaxRank / kGroup / kWarps;  // of a warp
constexpr int kMaxSteps = kMaxDim / 16 / kQuarters;     // of 16 columns, of a warp

// Bytes from the beginning of shared memory.
struct Places {
  int pitch;      // of queries and keys; an odd multiple of 16, so that 8 rows begin in different banks
  int raw_pitch;  // of keys as the cache stores them
  int tiles, raw, scores, weights, factors, maxima;
  int bytes;
};

__host__ __device__ constexpr int pitch_for(int dim) { return ((dim + 15) / 16 * 2 | 1) * 16; }

template <int kRows, int kKeys>
Places places_of(const RowShape& row) {
  Places p{};
  p.pitch = pitch_for(row.dim());
  p.raw_pitch = (row.bytes + 15) / 16 * 16;
  const bool direct = row.format == Format::bf16;
  p.tiles = kRows > 16 ? kRows * p.pitch : 0;  // behind the queries
  p.raw = p.tiles + (direct ? 2 : 1) * kKeys * p.pitch;
  p.scores = p.raw + (direct ? 0 : kKeys * p.raw_pitch);
  p.weights = p.scores + kQuarters * kRows * (kKeys + 8) * 4;
  p.factors = p.weights + kRows * (kKeys + 8) * 2;
  p.maxima = p.factors + kRows * 4;
  p.bytes = p.maxima + kRows * 4;
  return p;
}

// Rows of a tile to shared memory, zeros where there are no more. Takes part in the next commit.
template <int kKeys>
__device__ __forceinline__ void copy_rows(unsigned char* to, int pitch, const Run& run, int first, int row_bytes) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool aligned = is_aligned(run.rows, 16) && row_bytes % 16 == 0;
  for (int key = warp; key < kKeys; key += kWarps) {
    const bool valid = first + key < run.n_keys;
    const uint8_t* from = run.rows + static_cast<int64_t>(valid ? first + key : 0) * row_bytes;
    unsigned char* row = to + key * pitch;
    if (aligned) {
      for (int i = lane * 16; i < row_bytes; i += kWarp * 16) copy_async(row + i, from + i, valid);
    } else {
      for (int i = lane; i < row_bytes; i += kWarp) row[i] = valid ? from[i] : uint8_t{0};
    }
  }
}

__device__ __forceinline__ uint4 pack_eight(const float (&x)[8]) {
  return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}
// Two halves of shared memory, which need not be aligned to 4 bytes.
__device__ __forceinline__ uint32_t two_halves(const unsigned char* p) {
  const auto* halves = reinterpret_cast<const uint16_t*>(p);
  return halves[0] | static_cast<uint32_t>(halves[1]) << 16;
}

// Columns c .. c + 8 of a stored row. c is a multiple of 8, rank one of 16.
template <Format format>
__device__ __forceinline__ uint4 eight_of_row(const RowShape& shape, const unsigned char* row, int c) {
  float x[8];
  if constexpr (format == Format::f16) {
    const uint4 words = *reinterpret_cast<const uint4*>(row + 2 * c);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = f16_to_float(static_cast<uint16_t>(pairs[i / 2] >> i % 2 * 16));
    return pack_eight(x);
  }
  if (c >= shape.rank) {
    const unsigned char* p = row + shape.rope_at + 2 * (c - shape.rank);
    return make_uint4(two_halves(p), two_halves(p + 4), two_halves(p + 8), two_halves(p + 12));
  }
  if constexpr (format == Format::f8_e4m3) {
    const float scale = *reinterpret_cast<const float*>(row + shape.rank + 4 * (c / kFp8Block));
    const uint2 codes = *reinterpret_cast<const uint2*>(row + c);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = widen_fp8((i < 4 ? codes.x : codes.y) >> i % 4 * 8 & 0xFF) * scale;
  } else {
    const unsigned char* block = row + c / kQ8Block * kQ8BlockBytes;
    const float scale = f16_to_float(*reinterpret_cast<const uint16_t*>(block));
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const uint32_t codes[2] = {*reinterpret_cast<const uint16_t*>(block + 2 + c % kQ8Block + i),
                                 *reinterpret_cast<const uint16_t*>(block + 4 + c % kQ8Block + i)};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x[i + j] = static_cast<float>(static_cast<int8_t>(codes[j / 2] >> j % 2 * 8)) * scale;
      }
    }
  }
  return pack_eight(x);
}

template <Format format, int kKeys>
__device__ __forceinline__ void convert_rows(unsigned char* to, int pitch, const unsigned char* from, int from_pitch,
                                             const RowShape& shape) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int key = warp; key < kKeys; key += kWarps) {
    for (int c = lane * 8; c < shape.dim(); c += kWarp * 8) {
      *reinterpret_cast<uint4*>(to + key * pitch + 2 * c) = eight_of_row<format>(shape, from + key * from_pitch, c);
    }
  }
}

// kRows queries of a tile, kKeys rows of the cache. Warp w has quarter w / 2 of the columns and half w % 2 of the keys
// where all queries fit into one product, else of the queries. whole: rows have the largest dimensions that there are.
template <Format format, int kRows, int kKeys, bool whole>
__global__ void __launch_bounds__(kThreads, 1) attend(const AbsorbedAttention a, const Places at) {
  constexpr bool kDirect = format == Format::bf16;
  constexpr bool kHeld = kRows == 16;  // queries in registers, high and low part
  constexpr int kRowTiles = kRows / 16, kRowTilesOfWarp = kHeld ? 1 : kRowTiles / 2;
  constexpr int kKeyPairs = kKeys / 16 / (kHeld ? 2 : 1);  // a warp's, of 8 keys twice
  constexpr int kScorePitch = kKeys + 8, kWeightPitch = (kKeys + 8) * 2;
  constexpr int kThreadsOfRow = kThreads / kRows, kPairs = kKeys / 2 / kThreadsOfRow;

  unsigned char* shared = shared_memory<unsigned char>();
  auto* scores = reinterpret_cast<float*>(shared + at.scores);  // [quarters, rows, keys]
  auto* factors = reinterpret_cast<float*>(shared + at.factors);
  auto* maxima = reinterpret_cast<float*>(shared + at.maxima);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int g = lane / 4, c = lane % 4, matrix = lane / 8, row_of_matrix = lane % 8;
  const int quarter = warp / 2, half = warp % 2;
  const int dim = whole ? kMaxDim : a.row.dim(), n_steps = (dim + 15) / 16, n_groups = a.row.rank / kGroup;
  const int pitch = whole ? pitch_for(kMaxDim) : at.pitch;
  // Where a lane's row of 8 x 8 matrices begins, from the first of 16 rows and columns on: of A and of transposed B
  // the second matrix lies below the first, of B beside it.
  const int below_first = (matrix % 2 * 8 + row_of_matrix) * pitch + matrix / 2 * 16;
  const int beside_first = (matrix / 2 * 8 + row_of_matrix) * pitch + matrix % 2 * 16;

  wait_for_inputs();
  start_next();
  const Tile tile = tile_of_block(a);

  // Columns that fill up the last step.
  if (dim % 16 != 0) {
    const int n_rows = (at.raw - (kHeld ? at.tiles : 0)) / pitch;
    for (int r = thread; r < n_rows; r += kThreads) {
      *reinterpret_cast<uint4*>(shared + r * pitch + 2 * dim) = make_uint4(0, 0, 0, 0);
    }
  }
  const Query mine = query_of(a, tile, thread / kThreadsOfRow);  // whose softmax this thread has a part of
  float maximum = -INFINITY, sum = 0;
  float o[kRowTiles][kMaxGroups][2][4] = {};

  Run run = run_from(a, tile.token, tile.end, kKeys);
  const auto copy = [&](int t) {
    if (t < run.end_tile) {
      if constexpr (kDirect) {
        copy_rows<kKeys>(shared + at.tiles + (t - run.begin_tile) % 2 * kKeys * pitch, pitch, run, t * kKeys,
                         a.row.bytes);
      } else {
        copy_rows<kKeys>(shared + at.raw, at.raw_pitch, run, t * kKeys, a.row.bytes);
      }
    }
    commit_copies();
  };
  copy(run.begin_tile);
  [[maybe_unused]] uint32_t q_high[kHeld ? kMaxSteps : 1][4], q_low[kHeld ? kMaxSteps : 1][4];
  if constexpr (kHeld) {
    const Query above = query_of(a, tile, g), below = query_of(a, tile, g + 8);
#pragma unroll
    for (int i = 0; i < kMaxSteps; ++i) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 x = query_pair(a, w % 2 == 0 ? above : below, (quarter + kQuarters * i) * 16 + w / 2 * 8 + 2 * c);
        q_high[i][w] = pack_bf16(x.x, x.y);
        q_low[i][w] = pack_bf16(x.x - bf16_low(q_high[i][w]), x.y - bf16_high(q_high[i][w]));
      }
    }
  } else {
    for (int r = warp; r < kRows; r += kWarps) {
      const Query query = query_of(a, tile, r);
      for (int i = 2 * lane; i < n_steps * 16; i += 2 * kWarp) {
        const float2 x = query_pair(a, query, i);
        *reinterpret_cast<uint32_t*>(shared + r * pitch + 2 * i) = pack_bf16(x.x, x.y);
      }
    }
  }

  while (true) {
    const int n_visible = run.n_visible(a, mine);
    for (int t = run.begin_tile; t < run.end_tile; ++t) {
      wait_copies<0>();
      __syncthreads();  // and all are done with the tile before
      const unsigned char* keys = shared + at.tiles;
      if constexpr (kDirect) {
        keys += (t - run.begin_tile) % 2 * kKeys * pitch;
      } else {
        convert_rows<format, kKeys>(shared + at.tiles, pitch, shared + at.raw, at.raw_pitch, a.row);
        __syncthreads();
      }
      copy(t + 1);

      // Scores of this quarter.
      float s[kRowTilesOfWarp][kKeyPairs][2][4] = {};
      const unsigned char* my_keys = keys + (kHeld ? half * (kKeys / 2) * pitch : 0) + beside_first;
#pragma unroll
      for (int i = 0; i < kMaxSteps; ++i) {
        const int step = quarter + kQuarters * i;
        if (whole || step < n_steps) {
          [[maybe_unused]] uint32_t q[kRowTilesOfWarp][4];
          if constexpr (!kHeld) {
#pragma unroll
            for (int r = 0; r < kRowTilesOfWarp; ++r) {
              load_matrices(q[r], shared + (half * kRowTilesOfWarp + r) * 16 * pitch + step * 32 + below_first);
            }
          }
#pragma unroll
          for (int p = 0; p < kKeyPairs; ++p) {
            uint32_t k[4];
            load_matrices(k, my_keys + p * 16 * pitch + step * 32);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              if constexpr (kHeld) {
                const uint32_t(&h)[4] = q_high[i];
                const uint32_t(&l)[4] = q_low[i];
                mma_bf16(s[0][p][j], h[0], h[1], h[2], h[3], k[2 * j], k[2 * j + 1]);
                mma_bf16(s[0][p][j], l[0], l[1], l[2], l[3], k[2 * j], k[2 * j + 1]);
              } else {
#pragma unroll
                for (int r = 0; r < kRowTilesOfWarp; ++r) {
                  mma_bf16(s[r][p][j], q[r][0], q[r][1], q[r][2], q[r][3], k[2 * j], k[2 * j + 1]);
                }
              }
            }
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRowTilesOfWarp; ++r) {
#pragma unroll
        for (int p = 0; p < kKeyPairs; ++p) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int row = (kHeld ? 0 : half * kRowTilesOfWarp + r) * 16 + g;
            const int column = (kHeld ? half * (kKeys / 2) : 0) + p * 16 + j * 8 + 2 * c;
            float* to = scores + (quarter * kRows + row) * kScorePitch + column;
            const float(&x)[4] = s[r][p][j];
            *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
            *reinterpret_cast<float2*>(to + 8 * kScorePitch) = make_float2(x[2], x[3]);
          }
        }
      }
      __syncthreads();

      // The softmax so far.
      {
        const int row = thread / kThreadsOfRow, part = thread % kThreadsOfRow;
        float x[2 * kPairs];
        float top = maximum;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const int column = 2 * (part + i * kThreadsOfRow);
          x[2 * i] = x[2 * i + 1] = 0;
#pragma unroll
          for (int n = 0; n < kQuarters; ++n) {
            const float2 y = *reinterpret_cast<const float2*>(scores + (n * kRows + row) * kScorePitch + column);
            x[2 * i] += y.x;
            x[2 * i + 1] += y.y;
          }
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& score = x[2 * i + j];
            score = t * kKeys + column + j < n_visible ? score * a.scale_log2 : -INFINITY;
            top = fmaxf(top, score);
          }
        }
#pragma unroll
        for (int d = kThreadsOfRow / 2; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, d));
        const float factor = exp2f(maximum - finite(top));
        maximum = top;
        sum *= factor;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const uint32_t word = pack_bf16(exp2f(x[2 * i] - finite(top)), exp2f(x[2 * i + 1] - finite(top)));
          sum += bf16_low(word) + bf16_high(word);
          const int column = 2 * (part + i * kThreadsOfRow);
          *reinterpret_cast<uint32_t*>(shared + at.weights + row * kWeightPitch + 2 * column) = word;
        }
        if (part == 0) factors[row] = factor;
      }
      __syncthreads();

      // The output of this warp's columns.
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const float above = factors[r * 16 + g], below = factors[r * 16 + g + 8];
        if (__any_sync(kAllLanes, above != 1.0f || below != 1.0f)) {
#pragma unroll
          for (int n = 0; n < kMaxGroups; ++n) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              float(&x)[4] = o[r][n][j];
              x[0] *= above;
              x[1] *= above;
              x[2] *= below;
              x[3] *= below;
            }
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kKeys / 16; ++k) {
        uint32_t p[kRowTiles][4];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          load_matrices(p[r], shared + at.weights + (r * 16 + matrix % 2 * 8 + row_of_matrix) * kWeightPitch + k * 32 +
                                  matrix / 2 * 16);
        }
#pragma unroll
        for (int n = 0; n < kMaxGroups; ++n) {
          const int group = warp + kWarps * n;
          if (whole || group < n_groups) {
            uint32_t v[4];
            load_matrices_transposed(v, keys + k * 16 * pitch + group * kGroup * 2 + below_first);
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r) {
              mma_bf16(o[r][n][0], p[r][0], p[r][1], p[r][2], p[r][3], v[0], v[1]);
              mma_bf16(o[r][n][1], p[r][0], p[r][1], p[r][2], p[r][3], v[2], v[3]);
            }
          }
        }
      }
    }
    if (run.end >= tile.end) break;
    __syncthreads();  // all are done with this run's last tiles
    run = run_from(a, run.end, tile.end, kKeys);
    copy(run.begin_tile);
  }

#pragma unroll
  for (int d = kThreadsOfRow / 2; d > 0; d /= 2) sum += __shfl_xor_sync(kAllLanes, sum, d);
  __syncthreads();  // the last factors have been read
  if (thread % kThreadsOfRow == 0) {
    factors[thread / kThreadsOfRow] = a.n_splits == 1 && sum > 0 ? 1 / sum : 1;
    maxima[thread / kThreadsOfRow] = maximum;
    if (a.n_splits > 1 && mine.token >= 0) {
      a.maxima[slot_of(a, mine)] = maximum;
      a.sums[slot_of(a, mine)] = sum;
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int row = r * 16 + below * 8 + g;
      const Query query = query_of(a, tile, row);
      if (query.token < 0 || (a.n_splits > 1 && maxima[row] == -INFINITY)) continue;
      float* out = a.out + slot_of(a, query) * a.row.rank + 2 * c;
      const float factor = factors[row];
#pragma unroll
      for (int n = 0; n < kMaxGroups; ++n) {
        const int group = warp + kWarps * n;
        if (whole || group < n_groups) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float(&x)[4] = o[r][n][j];
            *reinterpret_cast<float2*>(out + group * kGroup + j * 8) =
                make_float2(x[2 * below] * factor, x[2 * below + 1] * factor);
          }
        }
      }
    }
  }
}

// Bytes that a block may have.
size_t shared_limit() {
#if defined(__CUDACC__)
  static const size_t limit = [] {
    int device = 0, bytes = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
    return static_cast<size_t>(bytes);
  }();
  return limit;
#else
  return 227 * 1024;
#endif
}

template <int kRows, int kKeys>
bool fits(const RowShape& row) {
  return static_cast<size_t>(places_of<kRows, kKeys>(row).bytes) <= shared_limit();
}

template <Format format, int kRows, int kKeys, bool whole = false>
void run(Context& ctx, const AbsorbedAttention& a) {
  const Places at = places_of<kRows, kKeys>(a.row);
  launch(ctx, attend<format, kRows, kKeys, whole>, grid_of(a), dim3(kThreads), static_cast<size_t>(at.bytes), a, at);
}

template <Format format>
void run(Context& ctx, const AbsorbedAttention& a) {
  const bool whole = a.row.rank == kMaxRank && a.row.dim() == kMaxDim;
  if (a.rows_of_tile == 64) return whole ? run<format, 64, 32, true>(ctx, a) : run<format, 64, 32>(ctx, a);
  if (a.rows_of_tile == 32) return run<format, 32, 32>(ctx, a);
  if (!fits<16, 64>(a.row)) return run<format, 16, 32>(ctx, a);
  return whole ? run<format, 16, 64, true>(ctx, a) : run<format, 16, 64>(ctx, a);
}

}  // namespace

bool plan_bf16_attention(AbsorbedAttention& a) {
  constexpr int kMinHeads = 32, kMinTokens = 4;  // of a sequence: less would leave most of a large tile empty
  const RowShape& row = a.row;
  if (row.format == Format::f32 || row.rank % kGroup != 0 || row.rope % 8 != 0 || row.rank > kMaxRank ||
      row.dim() > kMaxDim || !fits<16, 32>(row)) {
    return false;
  }
  const bool large = a.n_heads >= kMinHeads || a.n_tokens >= kMinTokens * a.n_sequences;
  divide_into_tiles(a, !large ? 16 : fits<64, 32>(row) ? 64 : fits<32, 32>(row) ? 32 : 16);
  return true;
}

void attend_bf16(Context& ctx, const AbsorbedAttention& a) {
  switch (a.row.format) {
    case Format::bf16:
      return run<Format::bf16>(ctx, a);
    case Format::f16:
      return run<Format::f16>(ctx, a);
    case Format::f8_e4m3:
      return run<Format::f8_e4m3>(ctx, a);
    default:
      return run<Format::q8_0>(ctx, a);
  }
}

}  // namespace fathom::cuda
