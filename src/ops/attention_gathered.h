// The absorbed form's work for a token that has chosen its rows: they are read where they lie in the cache.
#pragma once

#include <span>

#include "ops/attention_blocks.h"
#include "ops/cpu/gathered_attention_kernels.h"

namespace fathom::attention {

// What chosen rows and their queries are multiplied as: by the cache's format, the shape of its rows and the CPU alone,
// so that a token's bits do not depend on what else is computed.
enum class Gathering {
  copied,  // copied into blocks of floats, for what the others cannot do
  f32,     // of a cache in f32: exact
  bf16,    // of any other, where the CPU multiplies bf16: queries and weights are rounded to it
};
Gathering gathering_of(const LatentRowLayout& layout);

// How many of its products are made in the time of one of the masked expanded form, measured on Zen 5 with 16 heads:
// 1.5 of bf16, 0.9 of floats in place, 0.5 of copied ones (of the peak of floats 1.1, 0.6, 0.36, and 0.7 expanded).
double gathering_rate(Gathering how);

// Makes what Gatherer takes out of n panels [dim, kQueryPanel], in place.
void pack_panels(float* panels, int64_t n, int64_t dim, Gathering how);

// Part of the softmax of some queries over some rows: exp(s - largest) summed, alone and times values.
struct Partial {
  float *largest, *sum;  // [queries]
  float* out;            // [queries, rank]
};

// Rows of one sequence.
struct ChosenRows {
  const LatentCacheView* sequence = nullptr;
  std::span<const int32_t> rows;
};

// One thread's memory for it.
class Gatherer {
 public:
  // For up to max_queries at a time. `converts`: for caches in formats that are not read where they lie, too.
  Gatherer(Context& ctx, const MlaDims& dims, int64_t max_queries, bool converts);

  // Overwrites `out` with what n queries see in up to kGatheredRows rows; q_panels as pack_panels makes them.
  // ahead: what this thread probably takes next.
  void attend(const Partial& out, const ChosenRows& chosen, const float* q_panels, int64_t n, const ChosenRows& ahead);

 private:
  MlaDims dims_;
  const char **rows_, **ahead_;
  char *zeros_, *strip_, *converted_ = nullptr;
  float *scores_, *row_ = nullptr;
};

}  // namespace fathom::attention
