#include "model/config.h"

#include <array>
#include <cmath>

#include "base/arithmetic.h"

namespace fathom {
namespace {

struct Range {
  const char* key;
  int64_t value, low, high;
};

// Far above every released model, low enough that no product of two of them overflows.
constexpr int64_t kMaxSize = int64_t{1} << 24;
constexpr double kMaxParameters = 1e14;

using Ranges = std::initializer_list<Range>;

void check_ranges(const Ranges& ranges, const std::string& where) {
  for (const auto& [key, value, low, high] : ranges) {
    if (value < low || value > high)
      throw Error("{}: {} is {}, must be between {} and {}", where, key, value, low, high);
  }
}

void check_latent_attention(const ModelConfig& c, const std::string& where) {
  check_ranges({{"q_lora_rank", c.q_lora_rank, 0, kMaxSize},
                {"kv_lora_rank", c.kv_lora_rank, 1, kMaxSize},
                {"qk_nope_head_dim", c.qk_nope_head_dim, 1, 65536},
                {"qk_rope_head_dim", c.qk_rope_head_dim, 2, 65536},
                {"v_head_dim", c.v_head_dim, 1, 65536}},
               where);
  if (c.qk_rope_head_dim % 2 != 0) {
    throw Error("{}: qk_rope_head_dim is {}, must be even: rotary embedding turns pairs", where, c.qk_rope_head_dim);
  }
}

void check_grouped_attention(const ModelConfig& c, const std::string& where) {
  check_ranges(
      {{"num_key_value_heads", c.num_key_value_heads, 1, c.num_attention_heads}, {"head_dim", c.head_dim, 2, 65536}},
      where);
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    throw Error("{}: num_key_value_heads is {}, must divide num_attention_heads ({})", where, c.num_key_value_heads,
                c.num_attention_heads);
  }
  if (c.head_dim % 2 != 0) {
    throw Error("{}: head_dim is {}, must be even: rotary embedding turns pairs", where, c.head_dim);
  }
  const bool plain = c.kv_lora_rank == 0 && c.q_lora_rank == 0 && c.router.n_routed_experts == 0 &&
                     c.num_nextn_predict_layers == 0 && !c.is_sparse();
  FATHOM_CHECK(plain && !c.rope_interleave, "{}", where);
}

void check_llama3_scaling(const Llama3Scaling& s, const std::string& where) {
  if (!(s.factor >= 1 && s.factor <= 1e6)) {
    throw Error("{}: rope_scaling.factor is {}, must be between 1 and 1e6", where, s.factor);
  }
  if (!(s.low_freq_factor > 0 && s.high_freq_factor > s.low_freq_factor && s.high_freq_factor < 1e6)) {
    throw Error("{}: rope_scaling.low_freq_factor and high_freq_factor are {} and {}, must be positive and grow", where,
                s.low_freq_factor, s.high_freq_factor);
  }
  check_ranges(
      {{"rope_scaling.original_max_position_embeddings", s.original_max_position_embeddings, 1, int64_t{1} << 31}},
      where);
}

}  // namespace

void check_config(const ModelConfig& c, const std::string& where) {
  const RouterConfig& r = c.router;
  check_ranges({{"vocab_size", c.vocab_size, 1, kMaxSize},
                {"hidden_size", c.hidden_size, 1, kMaxSize},
                {"num_hidden_layers", c.num_hidden_layers, 1, 10000},
                {"num_attention_heads", c.num_attention_heads, 1, 65536},
                {"intermediate_size", c.intermediate_size, 1, kMaxSize},
                {"max_position_embeddings", c.max_position_embeddings, 1, int64_t{1} << 31},
                {"num_nextn_predict_layers", c.num_nextn_predict_layers, 0, kMaxMtpModules},
                {"first_k_dense_replace", c.first_k_dense_replace, 0, 10000},
                {"n_routed_experts", r.n_routed_experts, 0, 65536}},
               where);
  if (c.is_mla()) {
    check_latent_attention(c, where);
  } else {
    check_grouped_attention(c, where);
  }
  if (!(c.rms_norm_eps > 0 && c.rms_norm_eps < 1)) {
    throw Error("{}: rms_norm_eps is {}, must be between 0 and 1", where, c.rms_norm_eps);
  }
  if (!(c.rope_theta > 1 && c.rope_theta < 1e12)) {
    throw Error("{}: rope_theta is {}, must be between 1 and 1e12", where, c.rope_theta);
  }
  if (!(c.initializer_range >= 0 && c.initializer_range < 10)) {
    throw Error("{}: initializer_range is {}, must be between 0 and 10", where, c.initializer_range);
  }
  if (c.rope_scaling) {
    const YarnScaling& y = *c.rope_scaling;
    if (!(y.factor >= 1 && y.factor <= 1e6)) {
      throw Error("{}: rope_scaling.factor is {}, must be between 1 and 1e6", where, y.factor);
    }
    if (y.original_max_position_embeddings < 1 || y.original_max_position_embeddings > (int64_t{1} << 31)) {
      throw Error("{}: rope_scaling.original_max_position_embeddings is {}, must be between 1 and 2^31", where,
                  y.original_max_position_embeddings);
    }
    if (!(y.beta_fast > 0 && y.beta_slow > 0 && y.beta_fast < 1e6 && y.beta_slow < 1e6)) {
      throw Error("{}: rope_scaling.beta_fast and beta_slow are {} and {}, must be positive", where, y.beta_fast,
                  y.beta_slow);
    }
    for (const double m : {y.mscale, y.mscale_all_dim}) {
      if (!(m >= 0 && m < 1000)) throw Error("{}: rope_scaling.mscale is {}, must be between 0 and 1000", where, m);
    }
  }
  if (c.llama3_scaling) check_llama3_scaling(*c.llama3_scaling, where);
  const bool has_moe = r.n_routed_experts > 0 && c.first_k_dense_replace < c.num_hidden_layers;
  if (c.num_nextn_predict_layers > 0 && r.n_routed_experts == 0) {
    throw Error("{}: num_nextn_predict_layers is {} but n_routed_experts is 0: an MTP layer is an MoE layer", where,
                c.num_nextn_predict_layers);
  }
  if (has_moe || c.num_nextn_predict_layers > 0) {
    if (c.moe_intermediate_size < 1 || c.moe_intermediate_size > kMaxSize) {
      throw Error("{}: moe_intermediate_size is {}, must be between 1 and {}", where, c.moe_intermediate_size,
                  kMaxSize);
    }
    if (c.n_shared_experts < 0 || c.n_shared_experts > 1024) {
      throw Error("{}: n_shared_experts is {}, must be between 0 and 1024", where, c.n_shared_experts);
    }
    if (r.num_experts_per_tok < 1 || r.num_experts_per_tok > r.n_routed_experts) {
      throw Error("{}: num_experts_per_tok is {}, must be between 1 and n_routed_experts ({})", where,
                  r.num_experts_per_tok, r.n_routed_experts);
    }
    if (r.n_group < 1 || r.n_routed_experts % r.n_group != 0) {
      throw Error("{}: n_group is {}, must divide n_routed_experts ({})", where, r.n_group, r.n_routed_experts);
    }
    if (r.topk_group < 1 || r.topk_group > r.n_group) {
      throw Error("{}: topk_group is {}, must be between 1 and n_group ({})", where, r.topk_group, r.n_group);
    }
    if (r.method == TopkMethod::noaux_tc && r.n_group > 1 && r.n_routed_experts / r.n_group < 2) {
      throw Error("{}: n_group is {}, leaves 1 expert a group; a group's score is the sum of its two best", where,
                  r.n_group);
    }
    const int64_t reachable = r.n_routed_experts / r.n_group * r.topk_group;
    if (r.method != TopkMethod::greedy && r.num_experts_per_tok > reachable) {
      throw Error("{}: num_experts_per_tok is {}, more than the {} experts of topk_group ({}) groups", where,
                  r.num_experts_per_tok, reachable, r.topk_group);
    }
    if (!(std::isfinite(r.routed_scaling_factor) && r.routed_scaling_factor > 0)) {
      throw Error("{}: routed_scaling_factor is {}, must be positive", where, r.routed_scaling_factor);
    }
  }
  if (c.is_sparse()) {
    const IndexerDims& i = c.indexer;
    check_ranges({{"index_n_heads", i.n_heads, 1, 65536},
                  {"index_head_dim", i.head_dim, 1, 65536},
                  {"index_topk", i.topk, 1, int64_t{1} << 31}},
                 where);
    if (c.q_lora_rank == 0) {
      throw Error("{}: q_lora_rank is null, but index_n_heads is {}: an indexer reads the query's latent", where,
                  i.n_heads);
    }
    if (i.head_dim < c.qk_rope_head_dim) {
      throw Error("{}: index_head_dim is {}, must be qk_rope_head_dim ({}) or more: so much of it is rotated", where,
                  i.head_dim, c.qk_rope_head_dim);
    }
  }
  // In floating point: the sizes above may not fit 64 bits when multiplied together.
  const double h = static_cast<double>(c.hidden_size), heads = static_cast<double>(c.num_attention_heads);
  const auto grouped = static_cast<double>(c.num_attention_heads + c.num_key_value_heads);
  const double attention =
      2 * h * grouped * static_cast<double>(c.head_dim) + h * static_cast<double>(c.q_lora_rank + c.cache_row()) +
      static_cast<double>(std::max(c.q_lora_rank, c.q_lora_rank > 0 ? 1 : c.hidden_size)) * heads *
          static_cast<double>(c.qk_head_dim()) +
      static_cast<double>(c.kv_lora_rank) * heads * static_cast<double>(c.qk_nope_head_dim + c.v_head_dim) +
      h * heads * static_cast<double>(c.v_head_dim) +
      static_cast<double>(c.indexer.n_heads * c.indexer.head_dim) * static_cast<double>(c.q_lora_rank) +
      static_cast<double>(c.indexer.n_heads + c.indexer.head_dim) * h;
  const double mlp =
      3 * h *
      std::max(static_cast<double>(c.intermediate_size), static_cast<double>(r.n_routed_experts + c.n_shared_experts) *
                                                             static_cast<double>(c.moe_intermediate_size));
  const double total =
      static_cast<double>(c.num_hidden_layers + 1) * (attention + mlp) + 2 * h * static_cast<double>(c.vocab_size);
  if (total > kMaxParameters)
    throw Error("{}: the sizes make a model of {:.1e} parameters, more than {:.0e}", where, total, kMaxParameters);
}

ParameterCount count_parameters(const ModelConfig& c) {
  const int64_t h = c.hidden_size, heads = c.num_attention_heads, rank = c.q_lora_rank;
  if (!c.is_mla()) {
    const int64_t q_rows = heads * c.head_dim, kv_rows = c.cache_row(), embedding = c.vocab_size * h;
    const int64_t biases = c.attention_bias ? q_rows + kv_rows : 0;
    const int64_t layers =
        c.num_hidden_layers * (h * (2 * q_rows + kv_rows) + biases + 2 * h + 3 * h * c.intermediate_size);
    return {layers + h + (c.tie_word_embeddings ? 1 : 2) * embedding, layers + h + embedding};
  }
  const int64_t q_rows = heads * c.qk_head_dim();
  const int64_t q = rank > 0 ? h * rank + rank + rank * q_rows : h * q_rows;
  const int64_t kv = h * c.cache_row() + c.kv_lora_rank + c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim);
  const IndexerDims& i = c.indexer;
  const int64_t indexer = i.n_heads * i.head_dim * rank + (i.n_heads + i.head_dim) * h + 2 * i.head_dim;
  const int64_t layer = q + kv + heads * c.v_head_dim * h + 2 * h + indexer;
  const int64_t expert = 3 * h * c.moe_intermediate_size;
  const RouterConfig& r = c.router;
  const int64_t gate = r.n_routed_experts * h + (r.method == TopkMethod::noaux_tc ? r.n_routed_experts : 0);
  ParameterCount count{2 * c.vocab_size * h + h, c.vocab_size * h + h};
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const int64_t common = layer + (c.is_moe(l) ? gate + c.n_shared_experts * expert : 3 * h * c.intermediate_size);
    count.total += common + (c.is_moe(l) ? r.n_routed_experts * expert : 0);
    count.active += common + (c.is_moe(l) ? r.num_experts_per_tok * expert : 0);
  }
  return count;
}

double training_flops_a_token(const ModelConfig& config, int64_t seq_len, bool with_mtp) {
  auto parameters = static_cast<double>(count_parameters(config).active);
  auto layers = static_cast<double>(config.num_hidden_layers);
  if (with_mtp) {
    ModelConfig longer = config;
    ++longer.num_hidden_layers;
    const double layer = static_cast<double>(count_parameters(longer).active) - parameters;
    const auto hidden = static_cast<double>(config.hidden_size);
    const auto modules = static_cast<double>(config.num_nextn_predict_layers);
    parameters += modules * (layer + 2 * hidden * hidden + hidden * static_cast<double>(config.vocab_size));
    layers += modules;
  }
  const double pairs = (static_cast<double>(seq_len) + 1) / 2;
  const int64_t of_head = config.is_mla() ? config.qk_head_dim() + config.v_head_dim : 2 * config.head_dim;
  return 6 * parameters +
         6 * pairs * layers * static_cast<double>(config.num_attention_heads) * static_cast<double>(of_head);
}

}  // namespace fathom
