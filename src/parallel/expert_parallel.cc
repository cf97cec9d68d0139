#include "parallel/expert_parallel.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <tuple>

#include "base/error.h"
#include "base/terminal.h"
#include "ops/embedding.h"

namespace fathom {
namespace {

using Bytes = std::span<std::byte>;
using ConstBytes = std::span<const std::byte>;

// Rows in bytes, those of one member behind those of the other.
struct PackedRows {
  std::byte* data;
  int64_t row_bytes;

  template <class Byte>
  std::vector<std::span<Byte>> parts(const std::vector<int64_t>& counts) const {
    std::vector<std::span<Byte>> all;
    std::byte* at = data;
    for (const int64_t n : counts) {
      all.emplace_back(at, static_cast<size_t>(n * row_bytes));
      at += n * row_bytes;
    }
    return all;
  }
};
PackedRows new_packed(Context& ctx, int64_t n, int64_t row_bytes) {
  return {static_cast<std::byte*>(ctx.arena.allocate(static_cast<size_t>(n * row_bytes))), row_bytes};
}

// How the rows of an exchange travel.
struct RowWay {
  RowFormat format;
  int64_t n_raw;  // columns at the end that go as they are
  bool across;    // nodes
};

std::vector<int64_t> counts_of(const Hop& hop) {
  std::vector<int64_t> counts;
  for (const auto& rows : hop.sent) counts.push_back(std::ssize(rows));
  return counts;
}

int64_t bytes_that_leave(const RankGroup& group, const std::vector<int64_t>& counts, int64_t row_bytes) {
  int64_t rows = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (std::cmp_not_equal(i, group.index)) rows += counts[i];
  }
  return rows * row_bytes;
}

void count(Traffic& traffic, const Traffic::Message& message, bool across) {
  (across ? traffic.across_nodes : traffic.within_node) += message.bytes;
  if (traffic.messages != nullptr) traffic.messages->push_back(message);
}

// Tells the members how many rows they get.
StagePass count_rows(const RankGroup& group, Hop& hop, int& tag) {
  hop.received.assign(hop.sent.size(), 0);
  const std::vector<int64_t> counts = counts_of(hop);
  std::vector<ConstBytes> sent;
  std::vector<Bytes> received;
  for (size_t i = 0; i < counts.size(); ++i) {
    sent.push_back(std::as_bytes(std::span(&counts[i], 1)));
    received.push_back(std::as_writable_bytes(std::span(&hop.received[i], 1)));
  }
  co_await arrival(all_to_all(group, sent, received, tag++));
}

// received [hop.n_received(), cols] = the rows that the members send here; rows [rows, cols] are this one's.
StagePass send_rows(Context& ctx, const RankGroup& group, const Hop& hop, Tensor rows, Tensor received, RowWay way,
                    int& tag, Traffic& traffic) {
  const std::vector<int64_t> counts = counts_of(hop);
  const int64_t bytes = row_bytes(way.format, rows.cols(), way.n_raw);
  const PackedRows from = new_packed(ctx, std::accumulate(counts.begin(), counts.end(), int64_t{0}), bytes);
  const PackedRows to = new_packed(ctx, received.rows(), bytes);
  {
    const ArenaScope scope(ctx.arena);
    const Tensor chosen = new_f32(ctx, {std::accumulate(counts.begin(), counts.end(), int64_t{0}), rows.cols()});
    int64_t at = 0;
    for (const auto& of_member : hop.sent) {
      for (const int32_t row : of_member) std::copy_n(rows.f32_row(row), rows.cols(), chosen.f32_row(at++));
    }
    encode_rows(ctx.pool, way.format, chosen, way.n_raw, from.data);
  }
  const double begin = monotonic_s();
  co_await arrival(all_to_all(group, from.parts<const std::byte>(counts), to.parts<std::byte>(hop.received), tag++));
  count(traffic, {/*returns=*/false, begin, monotonic_s(), bytes_that_leave(group, counts, bytes)}, way.across);
  decode_rows(ctx.pool, way.format, received, way.n_raw, to.data);
}

// The way back: rows [rows, cols] += what each of them has become, summed in the order of the members.
StagePass return_rows(Context& ctx, const RankGroup& group, const Hop& hop, Tensor rows, Tensor received, RowWay way,
                      int& tag, Traffic& traffic) {
  const std::vector<int64_t> counts = counts_of(hop);
  const int64_t n = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const int64_t bytes = row_bytes(way.format, rows.cols(), way.n_raw);
  const PackedRows from = new_packed(ctx, received.rows(), bytes), to = new_packed(ctx, n, bytes);
  encode_rows(ctx.pool, way.format, received, way.n_raw, from.data);
  const double begin = monotonic_s();
  co_await arrival(all_to_all(group, from.parts<const std::byte>(hop.received), to.parts<std::byte>(counts), tag++));
  count(traffic, {/*returns=*/true, begin, monotonic_s(), bytes_that_leave(group, hop.received, bytes)}, way.across);
  const Tensor parts = new_f32(ctx, {n, rows.cols()});
  decode_rows(ctx.pool, way.format, parts, way.n_raw, to.data);
  int64_t at = 0;
  for (const auto& of_member : hop.sent) {
    for (const int32_t row : of_member) {
      float* const sum = rows.f32_row(row);
      const float* const part = parts.f32_row(at++);
      for (int64_t i = 0; i < rows.cols(); ++i) sum[i] += part[i];
    }
  }
}

Tensor zeros(Context& ctx, int64_t rows, int64_t cols) {
  const Tensor t = new_f32(ctx, {rows, cols});
  fill_zero(ctx, t);
  return t;
}

// Which rows go to which member: place(expert) is the member that looks after it, or -1 for none of them.
template <class Place>
Hop make_hop(Tensor ids, int size, const Place& place) {
  Hop hop;
  hop.sent.resize(static_cast<size_t>(size));
  for (int64_t t = 0; t < ids.rows(); ++t) {
    for (int64_t k = 0; k < ids.cols(); ++k) {
      const int member = place(ids.i32()[t * ids.row_stride + k]);
      if (member < 0) continue;
      auto& rows = hop.sent[static_cast<size_t>(member)];
      if (rows.empty() || rows.back() != t) rows.push_back(static_cast<int32_t>(t));
    }
  }
  return hop;
}

// What travels with a row: [hidden | k weights | k ids], the ids' bits in floats.
Tensor with_choices(Context& ctx, Tensor rows, Tensor weights, Tensor ids) {
  const int64_t hidden = rows.cols(), k = ids.cols();
  const Tensor packed = new_f32(ctx, {rows.rows(), hidden + 2 * k});
  for (int64_t t = 0; t < rows.rows(); ++t) {
    float* const to = packed.f32_row(t);
    std::copy_n(rows.f32_row(t), hidden, to);
    std::copy_n(weights.f32_row(t), k, to + hidden);
    std::memcpy(to + hidden + k, ids.i32() + t * ids.row_stride, static_cast<size_t>(k) * sizeof(int32_t));
  }
  return packed;
}
// Of packed rows, from this column on.
Tensor ids_of(Context& ctx, Tensor packed, int64_t column, int64_t k) {
  const Tensor ids = new_i32(ctx, {packed.rows(), k});
  for (int64_t t = 0; t < packed.rows(); ++t) {
    std::memcpy(ids.i32() + t * k, packed.f32_row(t) + column, static_cast<size_t>(k) * sizeof(int32_t));
  }
  return ids;
}

// Each token's choices by the members that compute them.
struct Choices {
  std::vector<std::vector<int32_t>> rows, ids;  // [member]: tokens, ascending; of each [k] experts, -1: another's
  Hop outputs;                                  // whose rows are the slots, in the order of rows and ids
};
Choices choose_homes(const RankGroup& group, const ExpertHomes& homes, const MoeSaved& s) {
  const auto size = static_cast<size_t>(group.size());
  Choices all{std::vector<std::vector<int32_t>>(size), std::vector<std::vector<int32_t>>(size), {}};
  all.outputs.sent.resize(size);
  if (!s.topk_ids) return all;
  const int64_t k = s.topk_ids.cols();
  for (int64_t t = 0; t < s.topk_ids.rows(); ++t) {
    for (int64_t i = 0; i < k; ++i) {
      const int32_t e = s.topk_ids.i32()[t * s.topk_ids.row_stride + i];
      const std::vector<int>& at = homes[static_cast<size_t>(e)];
      const bool here = std::find(at.begin(), at.end(), group.index) != at.end();
      // Else its homes take turns.
      const auto turn = static_cast<size_t>(group.index + t) % at.size();
      const auto member = static_cast<size_t>(here ? group.index : at[turn]);
      auto [rows, ids] = std::tie(all.rows[member], all.ids[member]);
      if (rows.empty() || rows.back() != t) {
        rows.push_back(static_cast<int32_t>(t));
        ids.insert(ids.end(), static_cast<size_t>(k), -1);
      }
      ids[ids.size() - static_cast<size_t>(k - i)] = e;
      all.outputs.sent[member].push_back(s.dispatch.slot_of.i32()[t * s.dispatch.slot_of.row_stride + i]);
    }
  }
  return all;
}

}  // namespace

int64_t Hop::n_received() const { return std::accumulate(received.begin(), received.end(), int64_t{0}); }

ExpertGroup make_expert_group(Communicator& comm, const std::vector<int>& ranks, int ranks_per_node, int tag) {
  const auto size = static_cast<int>(ranks.size());
  if (ranks_per_node < 1 || size % ranks_per_node != 0) {
    throw Error("{} ranks with experts are not evenly on nodes of {}", size, ranks_per_node);
  }
  const auto own = std::find(ranks.begin(), ranks.end(), comm.rank()) - ranks.begin();
  FATHOM_CHECK(own < size);
  std::vector<int> across, within;
  for (int i = 0; i < size; ++i) {
    if (i % ranks_per_node == own % ranks_per_node) across.push_back(ranks[static_cast<size_t>(i)]);
    if (i / ranks_per_node == own / ranks_per_node) within.push_back(ranks[static_cast<size_t>(i)]);
  }
  return {make_group(comm, across, tag), make_group(comm, within, tag)};
}

ExpertRange experts_of(int64_t n_routed_experts, int size, int index) {
  if (n_routed_experts % size != 0) {
    throw Error("{} experts cannot be dealt out evenly to {} ranks", n_routed_experts, size);
  }
  const int64_t each = n_routed_experts / size;
  return {each * index, each * (index + 1)};
}

StagePass experts_forward(Context& ctx, const Model& model, const ExpertGroup& group, const MoeWeights& w, Tensor out,
                          const MoeSaved& s, ExpertsHere& here, Context& made_again, int& tag, Traffic& traffic) {
  const int64_t hidden = s.input.cols(), k = s.topk_ids.cols(), cols = hidden + 2 * k;
  const auto each = static_cast<int>(model.config.router.n_routed_experts / group.size());
  const int per_node = group.within.size();
  const RowFormat to = dispatch_format(model.precision), back = combine_format(model.precision);
  // To the nodes,
  here.across = make_hop(s.topk_ids, group.across.size(), [&](int32_t e) { return e / each / per_node; });
  co_await count_rows(group.across, here.across, tag);
  const Tensor at_node = new_f32(made_again, {here.across.n_received(), cols});
  co_await send_rows(made_again, group.across, here.across,
                     with_choices(made_again, s.input, s.topk_weights, s.topk_ids), at_node, {to, 2 * k, true}, tag,
                     traffic);
  // inside this one to the ranks,
  here.within = make_hop(ids_of(made_again, at_node, hidden + k, k), per_node, [&](int32_t e) {
    return e / each / per_node == group.across.index ? e / each % per_node : -1;
  });
  co_await count_rows(group.within, here.within, tag);
  const Tensor rows = new_f32(ctx, {here.within.n_received(), cols});
  co_await send_rows(made_again, group.within, here.within, at_node, rows, {to, 2 * k, false}, tag, traffic);
  // through this one's experts,
  MoeSaved& saved = here.saved;
  saved.input = rows.columns(0, hidden);
  saved.topk_weights = rows.columns(hidden, k);
  saved.topk_ids = ids_of(ctx, rows, hidden + k, k);
  for (int64_t i = 0; i < saved.topk_ids.size(); ++i) {
    int32_t& e = saved.topk_ids.i32()[i];
    e = e / each == group.index() ? e % each : -1;
  }
  saved.dispatch = make_dispatch(ctx, saved.topk_ids, each);
  const Tensor y = zeros(made_again, rows.rows(), hidden);
  layer_experts(ctx, model, w, y, saved, made_again);
  // and back, summed on the way.
  const Tensor node_y = zeros(made_again, at_node.rows(), hidden);
  co_await return_rows(made_again, group.within, here.within, node_y, y, {back, 0, false}, tag, traffic);
  co_await return_rows(made_again, group.across, here.across, out, node_y, {back, 0, true}, tag, traffic);
}

StagePass experts_backward(Context& ctx, const Model& model, const ExpertGroup& group, const MoeWeights& w,
                           Tensor d_input, Tensor d_weights, Tensor d_out, ExpertsHere& here, int& tag,
                           Traffic& traffic) {
  const int64_t hidden = d_out.cols(), k = d_weights.cols();
  const RowFormat to = dispatch_format(model.precision), back = combine_format(model.precision);
  const Tensor at_node = new_f32(ctx, {here.across.n_received(), hidden});
  co_await send_rows(ctx, group.across, here.across, d_out, at_node, {to, 0, true}, tag, traffic);
  const Tensor d_y = new_f32(ctx, {here.within.n_received(), hidden});
  co_await send_rows(ctx, group.within, here.within, at_node, d_y, {to, 0, false}, tag, traffic);

  const Tensor d_rows = zeros(ctx, d_y.rows(), hidden + k);
  layer_experts_backward_input(ctx, model, w, here.saved, d_rows.columns(0, hidden), d_rows.columns(hidden, k), d_y,
                               here.grads);
  const Tensor d_node = zeros(ctx, at_node.rows(), hidden + k), d_all = zeros(ctx, d_out.rows(), hidden + k);
  co_await return_rows(ctx, group.within, here.within, d_node, d_rows, {back, k, false}, tag, traffic);
  co_await return_rows(ctx, group.across, here.across, d_all, d_node, {back, k, true}, tag, traffic);
  add(ctx, d_input, d_input, d_all.columns(0, hidden));
  for (int64_t t = 0; t < d_weights.rows(); ++t) {
    std::copy_n(d_all.f32_row(t) + hidden, k, d_weights.f32_row(t));
  }
}

StagePass experts_at_homes(Context& ctx, const Model& model, const RankGroup& group, const ExpertHomes& homes,
                           const MoeWeights& w, Tensor y_sorted, const MoeSaved& s, RowFormats formats,
                           Traffic& traffic, const std::function<void()>& meanwhile) {
  const int64_t hidden = model.config.hidden_size, k = model.config.router.num_experts_per_tok;
  int tag = 0;
  Choices choices = choose_homes(group, homes, s);
  // Rows with their choices, those of one member behind those of the other.
  Hop there;
  int32_t n_packed = 0;
  for (const std::vector<int32_t>& rows : choices.rows) {
    std::vector<int32_t>& sent = there.sent.emplace_back(rows.size());
    std::iota(sent.begin(), sent.end(), n_packed);
    n_packed += static_cast<int32_t>(rows.size());
  }
  const Tensor packed = new_f32(ctx, {n_packed, hidden + k});
  int64_t next = 0;
  for (size_t m = 0; m < choices.rows.size(); ++m) {
    for (size_t i = 0; i < choices.rows[m].size(); ++i) {
      float* const to = packed.f32_row(next++);
      std::copy_n(s.input.f32_row(choices.rows[m][i]), hidden, to);
      std::memcpy(to + hidden, &choices.ids[m][i * static_cast<size_t>(k)], static_cast<size_t>(k) * sizeof(int32_t));
    }
  }
  co_await count_rows(group, there, tag);
  const Tensor rows = new_f32(ctx, {there.n_received(), hidden + k});
  StagePass away = send_rows(ctx, group, there, packed, rows, {formats.there, k, false}, tag, traffic);
  away.go_on();
  meanwhile();
  co_await std::move(away);

  MoeSaved here;
  here.input = rows.columns(0, hidden);
  here.topk_ids = ids_of(ctx, rows, hidden, k);
  here.dispatch = make_dispatch(ctx, here.topk_ids, model.config.router.n_routed_experts);
  const int64_t slots = here.dispatch.token_of.cols();
  const Tensor y = new_f32(ctx, {slots, hidden}), outputs = new_f32(ctx, {slots, hidden});
  layer_expert_outputs(ctx, model, w, y, here);
  Hop& back = choices.outputs;
  int64_t row = 0, output = 0;
  for (const int64_t n : there.received) {
    const int64_t first = output;
    for (const int64_t end = row + n; row < end; ++row) {
      for (int64_t i = 0; i < k; ++i) {
        const int32_t slot = here.dispatch.slot_of.i32()[row * k + i];
        if (slot >= 0) std::copy_n(y.f32_row(slot), hidden, outputs.f32_row(output++));
      }
    }
    back.received.push_back(output - first);
  }
  fill_zero(ctx, y_sorted);
  co_await return_rows(ctx, group, back, y_sorted, outputs, {formats.back, 0, false}, tag, traffic);
}

}  // namespace fathom
