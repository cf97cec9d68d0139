// A model whose layers attend to what their indexers choose (DeepSeek Sparse Attention): the same tokens however a
// context is read, and gradients that go where the report has them go.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <set>

#include "model/indexer.h"
#include "model/loss.h"
#include "model/tiny_models.h"

namespace fathom {
namespace {

using Ids = std::vector<int32_t>;

struct Machine {
  ThreadPool pool;
  Arena arena;
  Context ctx{pool, arena};
  explicit Machine(int threads = 2) : pool(threads) {}
};

struct SparseModel {
  ModelConfig config;
  Parameters parameters;
  Model model;
  explicit SparseModel(const ModelConfig& c)
      : config(c), parameters(tiny_parameters(c)), model(make_model(c, parameters.weights)) {}
};

std::vector<float> copy(Tensor t) {
  std::vector<float> values;
  for (int64_t r = 0; r < t.rows(); ++r) values.insert(values.end(), t.f32_row(r), t.f32_row(r) + t.cols());
  return values;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

Ids part(const Ids& ids, int64_t begin, int64_t n) {
  return {ids.begin() + begin, ids.begin() + std::min(begin + n, std::ssize(ids))};
}

// A cache in pages, the last in front.
struct Pages {
  Buffer memory;
  LatentCache cache;
  Pages(const ModelConfig& config, int64_t n_layers, Format format, int64_t n)
      : memory(static_cast<size_t>(n * cache_page_bytes(config, n_layers, format))),
        cache(make_paged_cache(config, format)) {
    for (int64_t i = 0; i < n; ++i) {
      cache.pages.push_back(static_cast<char*>(memory.data()) + (n - 1 - i) * n_layers * cache.layer_bytes);
      cache.capacity += kCachePageRows;
    }
  }
};

std::vector<float> read(Machine& m, const Model& model, const std::vector<Ids>& sequences,
                        const std::vector<LatentCache*>& caches, size_t expand_from) {
  const ArenaScope scope(m.arena);
  std::vector<int64_t> first;
  for (const LatentCache* cache : caches) first.push_back(cache->length);
  return copy(
      forward(m.ctx, model, make_batch(m.ctx, sequences, first), {.caches = caches, .expand_from = expand_from}));
}

// The rows of a cache that is read piece by piece.
std::vector<float> read_in_pieces(Machine& m, const Model& model, const Ids& ids, LatentCache& cache, int64_t piece,
                                  size_t expand_from) {
  std::vector<float> hidden;
  while (cache.length < std::ssize(ids)) {
    const std::vector<float> rows = read(m, model, {part(ids, cache.length, piece)}, {&cache}, expand_from);
    hidden.insert(hidden.end(), rows.begin(), rows.end());
  }
  return hidden;
}

// What token t chose.
std::set<int32_t> chosen(Tensor selected, int64_t t) {
  const int32_t* const row = selected.i32() + t * selected.row_stride;
  return {row, std::find(row, row + selected.cols(), -1)};
}

TEST(Sparse, StepByStepChoosesAndSaysWhatOnePassDoes) {
  for (const int64_t head_dim : {8, 7}) {  // of the second nothing is transformed
    Machine m;
    ModelConfig config = tiny_v32();
    config.indexer.head_dim = head_dim;
    const SparseModel sparse(config);
    const std::vector<Ids> sequences{random_ids(131, config.vocab_size, 1), random_ids(9, config.vocab_size, 2),
                                     random_ids(77, config.vocab_size, 3)};
    ForwardSaved whole;
    const Batch packed = make_batch(m.ctx, sequences);
    const Tensor hidden = forward(m.ctx, sparse.model, packed, {.saved = &whole});
    for (size_t s = 0; s < sequences.size(); ++s) {
      LatentCache cache = make_latent_cache(config, 140);
      LatentCache* const caches[] = {&cache};
      for (const int32_t id : sequences[s]) {
        const ArenaScope scope(m.arena);
        const int64_t position = cache.length, row = packed.offsets[s] + position;
        const Ids token{id};
        ForwardSaved step;
        const Batch batch = make_batch(m.ctx, {&token, 1}, {&position, 1});
        const Tensor one = forward(m.ctx, sparse.model, batch, {.saved = &step, .caches = caches});
        for (int64_t d = 0; d < one.cols(); ++d) ASSERT_NEAR(one.f32(0, d), hidden.f32(row, d), 3e-5f) << position;
        for (size_t l = 0; l < step.layers.size(); ++l) {
          LatentCacheView view = cache.view(static_cast<int64_t>(l));
          view.n_new = 1;
          const IndexerSaved& indexer = step.layers[l].attention.indexer;
          const Tensor selected = new_i32(m.ctx, {1, config.indexer.topk});
          select_keys(m.ctx, selected, indexer.q, indexer.weights, {&view, 1}, config.indexer);
          EXPECT_EQ(chosen(selected, 0), chosen(whole.layers[l].attention.indexer.selected, row)) << position;
        }
      }
    }
  }
}

const Format kFormats[] = {Format::f32, Format::bf16, Format::f16, Format::f8_e4m3, Format::q8_0};

// Prompts are read in the expanded form, which far behind index_topk is the absorbed one too: bits do not tell.
TEST(Sparse, APromptHasTheSameBitsInAnyPiecesPagesAndBatch) {
  for (const Format format : kFormats) {
    for (const size_t expand_from : {kExpandAll, kExpandNone}) {
      Machine m;
      const SparseModel sparse(tiny_v32());
      const int64_t layers = sparse.config.num_hidden_layers;
      const Ids ids = random_ids(150, sparse.config.vocab_size, 1), other = random_ids(90, sparse.config.vocab_size, 2);
      LatentCache first = make_latent_cache(sparse.config, 200, format);
      // An empty cache is always read in the expanded form, and in the absorbed form only what comes behind that.
      const int64_t begun = expand_from == kExpandNone ? 5 : 0;
      const auto begin = [&](LatentCache& cache) {
        if (begun > 0) read(m, sparse.model, {part(ids, 0, begun)}, {&cache}, kExpandAll);
      };
      begin(first);
      const std::vector<float> whole = read_in_pieces(m, sparse.model, ids, first, 150, expand_from);
      for (const float value : whole) ASSERT_TRUE(std::isfinite(value));
      for (const int64_t piece : {1, 3, 64, 100}) {
        LatentCache flat = make_latent_cache(sparse.config, 170, format);
        Pages paged(sparse.config, layers, format, 3);
        for (LatentCache* const cache : {&flat, &paged.cache}) {
          begin(*cache);
          EXPECT_TRUE(same_bits(read_in_pieces(m, sparse.model, ids, *cache, piece, expand_from), whole))
              << format_traits(format).name << " in pieces of " << piece;
        }
        for (int64_t l = 0; l < layers; ++l) {
          const int64_t row_bytes = latent_row_bytes(flat.layout);
          for (int64_t i = 0; i < 150; ++i) {
            ASSERT_EQ(memcmp(flat.rows(l, i), first.rows(l, i), static_cast<size_t>(row_bytes)), 0);
            ASSERT_EQ(memcmp(paged.cache.rows(l, i), first.rows(l, i), static_cast<size_t>(row_bytes)), 0);
          }
          std::vector<float> keys[3];
          for (std::vector<float>& of : keys) of.resize(static_cast<size_t>(sparse.config.indexer.head_dim));
          for (int64_t i = 0; i < 150; ++i) {
            const LatentCache* const all[] = {&first, &flat, &paged.cache};
            for (size_t c = 0; c < 3; ++c)
              read_index_key(first.index_keys, keys[c].data(), all[c]->index_block(l, i / kIndexBlock),
                             i % kIndexBlock);
            ASSERT_TRUE(same_bits(keys[0], keys[1]) && same_bits(keys[0], keys[2]));
          }
        }
      }
      // Beside others, in front of it and behind it.
      LatentCache beside = make_latent_cache(sparse.config, 170, format),
                  neighbour = make_latent_cache(sparse.config, 100, format);
      begin(beside);
      std::vector<float> hidden;
      for (int64_t step = 0; beside.length < 150; ++step) {
        const Ids mine = part(ids, beside.length, 40), theirs = part(other, neighbour.length, 17);
        const bool in_front = step % 2 == 0;
        const std::vector<float> rows = in_front
                                            ? read(m, sparse.model, {mine, theirs}, {&beside, &neighbour}, expand_from)
                                            : read(m, sparse.model, {theirs, mine}, {&neighbour, &beside}, expand_from);
        const auto from = in_front ? rows.begin() : rows.begin() + std::ssize(theirs) * sparse.config.hidden_size;
        hidden.insert(hidden.end(), from, from + std::ssize(mine) * sparse.config.hidden_size);
      }
      EXPECT_TRUE(same_bits(hidden, whole)) << format_traits(format).name << " beside another";
    }
  }
}

// One generates while others' prompts are read: as Batching has it.
TEST(Sparse, GenerationBesidePromptsChangesNoBit) {
  for (const Format format : {Format::f32, Format::bf16, Format::f8_e4m3}) {
    Machine m;
    const SparseModel sparse(tiny_v32());
    const Ids first = random_ids(140, sparse.config.vocab_size, 1),
              second = random_ids(150, sparse.config.vocab_size, 2);
    const int64_t prompt = 130;
    LatentCache own = make_latent_cache(sparse.config, 150, format),
                other = make_latent_cache(sparse.config, 150, format);
    read(m, sparse.model, {part(first, 0, prompt)}, {&own}, kExpandAll);
    const std::vector<float> want = read_in_pieces(m, sparse.model, first, own, 1, kExpandNone);
    const std::vector<float> want_read = read_in_pieces(m, sparse.model, second, other, 150, kExpandAll);
    Pages a(sparse.config, sparse.config.num_hidden_layers, format, 3),
        b(sparse.config, sparse.config.num_hidden_layers, format, 3);
    read(m, sparse.model, {part(first, 0, prompt)}, {&a.cache}, kExpandAll);
    std::vector<float> generated, prompt_read;
    while (a.cache.length < 140) {
      const std::vector<float> rows = read(
          m, sparse.model, {part(first, a.cache.length, 1), part(second, b.cache.length, 15)}, {&a.cache, &b.cache}, 1);
      generated.insert(generated.end(), rows.begin(), rows.begin() + sparse.config.hidden_size);
      prompt_read.insert(prompt_read.end(), rows.begin() + sparse.config.hidden_size, rows.end());
    }
    EXPECT_TRUE(same_bits(generated, want)) << format_traits(format).name;
    EXPECT_TRUE(same_bits(prompt_read, want_read)) << format_traits(format).name;
  }
}

TEST(Sparse, WhereAllAreChosenAttentionIsDenseToTheBit) {
  for (const int64_t topk : {int64_t{140}, int64_t{4096}, int64_t{1} << 31}) {
    Machine m;
    ModelConfig config = tiny_v32();
    config.indexer.topk = topk;
    check_config(config, "test");
    const SparseModel sparse(config);
    Model dense = sparse.model;
    dense.dense_attention = true;
    const Ids ids = random_ids(140, config.vocab_size, 1);
    const Batch batch = make_batch(m.ctx, {&ids, 1});
    EXPECT_TRUE(same_bits(copy(forward(m.ctx, sparse.model, batch)), copy(forward(m.ctx, dense, batch))));
    for (const Format format : kFormats) {
      for (const size_t expand_from : {kExpandAll, kExpandNone}) {
        LatentCache a = make_latent_cache(config, 140, format), b = make_latent_cache(config, 140, format);
        EXPECT_TRUE(same_bits(read_in_pieces(m, sparse.model, ids, a, 33, expand_from),
                              read_in_pieces(m, dense, ids, b, 33, expand_from)));
      }
    }
  }
}

TEST(Sparse, ATokenMoreThanAreChosenIsSparse) {
  Machine m;
  const SparseModel sparse(tiny_v32());
  Model dense = sparse.model;
  dense.dense_attention = true;
  const Ids ids = random_ids(40, sparse.config.vocab_size, 1);
  const Batch batch = make_batch(m.ctx, {&ids, 1});
  const Tensor a = forward(m.ctx, sparse.model, batch), b = forward(m.ctx, dense, batch);
  for (int64_t t = 0; t < 40; ++t) {
    double difference = 0;
    for (int64_t d = 0; d < a.cols(); ++d)
      difference = std::max<double>(difference, std::abs(a.f32(t, d) - b.f32(t, d)));
    if (t < sparse.config.indexer.topk) {
      EXPECT_LT(difference, 1e-5) << t;
    } else {
      EXPECT_GT(difference, 1e-4) << t;
    }
  }
}

// Dense attention keeps index keys too: who reads on in the sparse form finds them.
TEST(Sparse, ADensePassLeavesTheFirstLayersKeys) {
  Machine m;
  const SparseModel sparse(tiny_v32());
  Model dense = sparse.model;
  dense.dense_attention = true;
  const Ids ids = random_ids(100, sparse.config.vocab_size, 1);
  LatentCache a = make_latent_cache(sparse.config, 100), b = make_latent_cache(sparse.config, 100);
  read_in_pieces(m, sparse.model, ids, a, 30, kExpandAll);
  read_in_pieces(m, dense, ids, b, 30, kExpandAll);
  std::vector<float> one(static_cast<size_t>(sparse.config.indexer.head_dim)), other = one;
  for (int64_t i = 0; i < 100; ++i) {
    read_index_key(a.index_keys, one.data(), a.index_block(0, i / kIndexBlock), i % kIndexBlock);
    read_index_key(b.index_keys, other.data(), b.index_block(0, i / kIndexBlock), i % kIndexBlock);
    EXPECT_EQ(one, other) << i;
  }
}

// As drafts that are refused leave it, or a conversation that goes on otherwise.
TEST(Sparse, ACutCacheIsThatOfItsTokens) {
  for (const Format format : kFormats) {
    Machine m;
    const SparseModel sparse(tiny_v32());
    const Ids ids = random_ids(150, sparse.config.vocab_size, 1), wrong = random_ids(150, sparse.config.vocab_size, 2);
    for (const int64_t cut : {0, 1, 13, 63, 64, 65, 101}) {
      LatentCache fresh = make_latent_cache(sparse.config, 150, format),
                  used = make_latent_cache(sparse.config, 150, format);
      if (cut > 0) read(m, sparse.model, {part(ids, 0, cut)}, {&fresh}, kExpandAll);
      if (cut > 0) read(m, sparse.model, {part(ids, 0, cut)}, {&used}, kExpandAll);
      read(m, sparse.model, {part(wrong, cut, 150)}, {&used}, kExpandAll);
      used.length = cut;
      EXPECT_TRUE(same_bits(read_in_pieces(m, sparse.model, ids, used, 7, kExpandNone),
                            read_in_pieces(m, sparse.model, ids, fresh, 7, kExpandNone)))
          << format_traits(format).name << " cut at " << cut;
    }
  }
}

TEST(Sparse, MtpModulesChooseForThemselves) {
  Machine m;
  const SparseModel sparse(tiny_v32());
  const Ids ids = random_ids(120, sparse.config.vocab_size, 1);
  const Batch batch = make_batch(m.ctx, {&ids, 1});
  const MtpWeights& module = sparse.model.weights.mtp[0];
  const Tensor hidden = forward(m.ctx, sparse.model, batch);
  MtpSaved saved;
  const MtpInput input = make_mtp_input(m.ctx, batch);
  const Tensor whole = mtp_forward(m.ctx, sparse.model, module, input, hidden, {.saved = &saved});
  ASSERT_TRUE(saved.layer.attention.indexer.selected);
  LatentCache cache = make_mtp_cache(sparse.config, 120);
  LatentCache* const caches[] = {&cache};
  for (int64_t t = 0; t < 119; ++t) {
    const ArenaScope scope(m.arena);
    const int64_t position = cache.length;
    const std::vector<Ids> next{{ids[static_cast<size_t>(t) + 1]}};
    const MtpInput one{from_host(m.ctx, Ids{static_cast<int32_t>(t)}), make_batch(m.ctx, next, {&position, 1})};
    const Tensor row = mtp_forward(m.ctx, sparse.model, module, one, hidden, {.caches = caches});
    for (int64_t d = 0; d < row.cols(); ++d) ASSERT_NEAR(row.f32(0, d), whole.f32(t, d), 3e-5f) << t;
  }
}

// ---- Gradients

const LossOptions kLoss{.mtp_weight = 0.3, .balance_alpha = 0.05, .indexer_scale = 0.01};

struct Gradients {
  Parameters parameters;
  LossResult result;

  std::span<const float> of_indexers() const {
    const auto begin = static_cast<size_t>(parameters.indexers_begin),
               end = static_cast<size_t>(parameters.indexers_end);
    return std::span<const float>(parameters.trained()).subspan(begin, end - begin);
  }
  std::vector<float> of_others() const {
    const std::span<const float> all = parameters.trained();
    std::vector<float> others(all.begin(), all.begin() + parameters.indexers_begin);
    others.insert(others.end(), all.begin() + parameters.indexers_end, all.end());
    return others;
  }
};

Gradients gradients(Machine& m, const Model& model, const std::vector<Ids>& sequences, LossOptions options) {
  const ArenaScope scope(m.arena);
  Arena scratch;
  options.scratch = &scratch;
  Gradients g{allocate_parameters(model.config, false), {}};
  const Batch batch = make_batch(m.ctx, sequences);
  g.result = loss_and_gradients(m.ctx, model, g.parameters.weights, batch, make_targets(m.ctx, batch), options);
  return g;
}

bool is_of_indexer(const std::string& name) { return name.find("indexer") != std::string::npos; }

bool all_zero(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return value == 0; });
}

std::vector<Ids> two_sequences(const ModelConfig& config) {
  return {random_ids(60, config.vocab_size, 1), random_ids(1, config.vocab_size, 2),
          random_ids(45, config.vocab_size, 3)};
}

LossOptions with(LossOptions options, const auto& change) {
  change(options);
  return options;
}

TEST(SparseGradient, IndexersLearnFromTheirLossAndAllElseFromTheOthers) {
  Machine m;
  const SparseModel sparse(tiny_v32());
  const std::vector<Ids> sequences = two_sequences(sparse.config);
  const Gradients without = gradients(m, sparse.model, sequences, kLoss),
                  both = gradients(m, sparse.model, sequences,
                                   with(kLoss, [](LossOptions&o) { o.train_indexers = true; }));
  EXPECT_TRUE(all_zero(without.of_indexers()));
  EXPECT_EQ(without.result.indexer.n, 0);
  EXPECT_TRUE(same_bits(without.of_others(), both.of_others()));
  EXPECT_EQ(without.result.loss_sum, both.result.loss_sum);
  EXPECT_EQ(without.result.mtp_loss_sum, both.result.mtp_loss_sum);
  // Three layers of all tokens, and the module's of one less a sequence; a choice from index_topk on.
  EXPECT_EQ(both.result.indexer.n, 3 * 106 + 103);
  EXPECT_EQ(both.result.indexer.n_recall, 3 * (46 + 31) + 45 + 30);
  EXPECT_GT(both.result.indexer.kl_mean(), 0);
  EXPECT_GT(both.result.indexer.recall_mean(), 0);
  EXPECT_LT(both.result.indexer.recall_mean(), 1);
  for_each_tensor(both.parameters.weights, sparse.config, [&](const NamedTensor& t) {
    EXPECT_TRUE(!is_of_indexer(t.name) || !all_zero(copy(t.view))) << t.name;
  });

  Model dense = sparse.model;
  dense.dense_attention = true;
  const Gradients alone =
      gradients(m, dense, sequences, with(kLoss, [](LossOptions& o) { o.train_indexers = o.indexers_alone = true; }));
  EXPECT_TRUE(all_zero(alone.of_others()));
  EXPECT_FALSE(all_zero(alone.of_indexers()));
  EXPECT_EQ(alone.result.loss_sum, gradients(m, dense, sequences, kLoss).result.loss_sum);
  EXPECT_EQ(alone.result.indexer.n, both.result.indexer.n);
  for_each_tensor(alone.parameters.weights, sparse.config, [&](const NamedTensor& t) {
    EXPECT_TRUE(!is_of_indexer(t.name) || !all_zero(copy(t.view))) << t.name;
  });
  // Without the MTP loss the modules are left out.
  const Gradients main = gradients(m, dense, sequences, {.train_indexers = true, .indexers_alone = true});
  EXPECT_EQ(main.result.indexer.n, 3 * 106);
}

TEST(SparseGradient, RecomputingAndThreadsChangeNoBit) {
  const SparseModel sparse(tiny_v32());
  Model model = sparse.model;
  const std::vector<Ids> sequences = two_sequences(sparse.config);
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8}) {
    model.precision = precision;
    for (const bool alone : {false, true}) {
      model.dense_attention = alone;
      std::vector<float> whole;
      double kl = 0;
      for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
        for (const int threads : {1, 3}) {
          Machine m(threads);
          const Gradients g = gradients(m, model, sequences, with(kLoss, [&](LossOptions& o) {
                                          o.train_indexers = true;
                                          o.indexers_alone = alone;
                                          o.recompute = recompute;
                                        }));
          const std::span<const float> all = g.parameters.trained();
          if (whole.empty()) {
            whole.assign(all.begin(), all.end());
            kl = g.result.indexer.kl;
          }
          EXPECT_TRUE(same_bits(all, whole)) << threads << " threads, recompute " << static_cast<int>(recompute);
          EXPECT_EQ(g.result.indexer.kl, kl);
        }
      }
    }
  }
}

// What indexers and routers choose: where it turns, the loss jumps.
std::vector<int32_t> choices(Machine& m, const Model& model, const std::vector<Ids>& sequences) {
  const ArenaScope scope(m.arena);
  const Batch batch = make_batch(m.ctx, sequences);
  ForwardSaved saved;
  MtpSaved mtp;
  const Tensor hidden = forward(m.ctx, model, batch, {.saved = &saved});
  mtp_forward(m.ctx, model, model.weights.mtp[0], make_mtp_input(m.ctx, batch), hidden, {.saved = &mtp});
  saved.layers.push_back(mtp.layer);
  std::vector<int32_t> all;
  for (const LayerSaved& layer : saved.layers) {
    for (const Tensor t : {layer.attention.indexer.selected, layer.moe.topk_ids}) {
      if (t) all.insert(all.end(), t.i32(), t.i32() + t.size());
    }
  }
  return all;
}

// Along random directions in each tensor that `wanted` names, against central differences of `objective`.
void check_slopes(SparseModel& sparse, const Model& model, const std::vector<Ids>& sequences,
                  const LossOptions& options, const std::function<bool(const std::string&)>& wanted,
                  const std::function<double(const LossResult&)>& objective) {
  Machine m;
  const Gradients g = gradients(m, model, sequences, options);
  const std::vector<int32_t> base = choices(m, model, sequences);
  std::map<std::string, Tensor> slopes;
  for_each_tensor(g.parameters.weights, sparse.config, [&](const NamedTensor& t) { slopes[t.name] = t.view; });
  for_each_tensor(sparse.parameters.weights, sparse.config, [&](const NamedTensor& t) {
    if (!t.trained || !wanted(t.name)) return;
    const std::vector<float> before = copy(t.view), gradient = copy(slopes[t.name]);
    Rng rng(std::hash<std::string>()(t.name));
    bool measured = false;
    for (int attempt = 0; attempt < 30 && !measured; ++attempt) {
      const float step = 2e-3f;
      std::vector<float> direction;
      double norm = 0, slope = 0;
      for (size_t i = 0; i < before.size(); ++i) direction.push_back(static_cast<float>(rng.normal()));
      for (const float d : direction) norm += static_cast<double>(d) * d;
      for (float& d : direction) d /= static_cast<float>(std::sqrt(norm));
      for (size_t i = 0; i < before.size(); ++i) slope += static_cast<double>(gradient[i]) * direction[i];
      double value[2];
      bool turned = false;
      for (const int side : {0, 1}) {
        for (size_t i = 0; i < before.size(); ++i)
          t.view.f32()[i] = before[i] + (side == 0 ? step : -step) * direction[i];
        turned |= choices(m, model, sequences) != base;
        value[side] = objective(gradients(m, model, sequences, options).result);
      }
      std::copy(before.begin(), before.end(), t.view.f32());
      if (turned) continue;
      measured = true;
      const double difference = (value[0] - value[1]) / (2.0 * step);
      EXPECT_NEAR(slope, difference, 2e-3 * std::max(0.5, std::abs(difference))) << t.name;
    }
    EXPECT_TRUE(measured) << t.name << ": choices turn in every direction";
  });
}

// The least that a config may ask for, sizes that fill no vector, and choices of a page and one.
TEST(Sparse, OddSizesReadAlikeAndTrain) {
  for (const IndexerDims& dims : {IndexerDims{1, 4, 1}, {5, 33, 3}, {2, 16, 64}, {67, 5, 65}}) {
    Machine m;
    ModelConfig config = tiny_v32();
    config.indexer = dims;
    check_config(config, "test");
    const SparseModel sparse(config);
    const Ids ids = random_ids(140, config.vocab_size, 1);
    for (const Format format : {Format::f32, Format::bf16, Format::f8_e4m3}) {
      LatentCache whole = make_latent_cache(config, 140, format), parts = make_latent_cache(config, 140, format);
      const std::vector<float> hidden = read_in_pieces(m, sparse.model, ids, whole, 140, kExpandAll);
      EXPECT_TRUE(same_bits(read_in_pieces(m, sparse.model, ids, parts, 19, kExpandAll), hidden)) << dims.topk;
    }
    const Gradients g = gradients(m, sparse.model, {ids}, {.mtp_weight = 0.3, .train_indexers = true});
    for (const float value : g.parameters.trained()) ASSERT_TRUE(std::isfinite(value));
    EXPECT_FALSE(dims.topk > 1 && all_zero(g.of_indexers()));
    EXPECT_GT(g.result.indexer.recall_mean(), 0);
  }
}

// So that there are directions in which no choice turns.
ModelConfig choosing_little() {
  ModelConfig config = tiny_v32();
  config.indexer.topk = 10;
  return config;
}

TEST(SparseGradient, OfTheModelIsThatOfItsLoss) {
  SparseModel sparse(choosing_little());
  const std::vector<Ids> sequences{random_ids(19, sparse.config.vocab_size, 1),
                                   random_ids(15, sparse.config.vocab_size, 3)};
  check_slopes(
      sparse, sparse.model, sequences, kLoss, [](const std::string& name) { return !is_of_indexer(name); },
      [](const LossResult& r) { return r.loss() + kLoss.mtp_weight * r.mtp_loss() + r.balance_loss / 2; });
}

TEST(SparseGradient, OfIndexersIsThatOfTheirDivergence) {
  SparseModel sparse(choosing_little());
  const std::vector<Ids> sequences{random_ids(19, sparse.config.vocab_size, 1),
                                   random_ids(15, sparse.config.vocab_size, 3)};
  LossOptions options{.mtp_weight = 0.3, .train_indexers = true, .indexers_alone = true, .indexer_scale = 0.02};
  const auto divergence = [&](const LossResult& r) { return options.indexer_scale * r.indexer.kl; };
  Model dense = sparse.model;
  dense.dense_attention = true;
  check_slopes(sparse, dense, sequences, options, is_of_indexer, divergence);
  // And over what was chosen, with the choices as they are.
  options.indexers_alone = false;
  check_slopes(sparse, sparse.model, sequences, options, is_of_indexer, divergence);
}

}  // namespace
}  // namespace fathom
