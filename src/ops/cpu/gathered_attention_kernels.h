// Attention to rows that lie anywhere (attention_absorbed.cc): scores, softmax and values of up to kGatheredRows cached
// rows, read where they are. A row is key and, in its first part, value.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

constexpr int64_t kGatheredRows = 256;  // of one call: they fit into the second cache, with all else
constexpr int64_t kRowTile = 8;         // rows whose scores are made together
constexpr int64_t kQueryPanel = 16;     // queries that lie together
constexpr int64_t kStripBytes = kGatheredRows * 64;

struct GatheredRows {
  const char* const* rows;  // [n, rounded up to kRowTile]; those behind n are zeros
  int64_t n;
  int64_t row_dim, rank;  // numbers of a row, a multiple of 4, and of its value, of 32
  int64_t n_queries;
  const char* queries;   // panels as pack_... makes them
  float* scores;         // scratch: [panels, kGatheredRows, kQueryPanel]
  char* strip;           // scratch: kStripBytes
  float *largest, *sum;  // [n_queries, rounded up to kQueryPanel]: the largest score, and the sum of exp(s - largest)
  float* out;            // [n_queries, rank]: the sum of exp(s - largest) times values
  const char* const* ahead;  // rows that are read next: fetched meanwhile
  int64_t n_ahead, ahead_bytes;
};

struct GatheredAttentionKernels {
  void (*attend_f32)(const GatheredRows&);
  // A panel of queries: [dim / 2, kQueryPanel, 2], from [dim, kQueryPanel] and in its place.
  void (*pack_f32)(float* panel, int64_t dim);
  // The same for rows of bf16: queries and exp(s - largest) are rounded to it too, the latter before they are summed,
  // so that the weights of values add up to 1. This and what follows only where the CPU multiplies bf16, else null.
  void (*attend_bf16)(const GatheredRows&);
  void (*pack_bf16)(float* panel, int64_t dim);  // [dim / 4, kQueryPanel, 4]: half the memory
  void (*narrow_row)(char* to, const float* from, int64_t dim);
};

// Those of the instruction sets: see gathered_attention_variants.h.
namespace baseline {
extern const GatheredAttentionKernels gathered_attention_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const GatheredAttentionKernels gathered_attention_kernels;
}
namespace avx512 {
extern const GatheredAttentionKernels gathered_attention_kernels;
}
namespace avx512_bf16 {
extern const GatheredAttentionKernels gathered_attention_kernels;
}
#endif

}  // namespace fathom::cpu
