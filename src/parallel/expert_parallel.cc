#include "parallel/expert_parallel.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <numeric>
#include <tuple>

#include "base/error.h"
#include "base/terminal.h"
#include "ops/embedding.h"

namespace fathom {
namespace {

using Bytes = std::span<std::byte>;
using ConstBytes = std::span<const std::byte>;

// Rows as they travel, those of one member behind those of the other.
struct PackedRows {
  std::byte* data;
  int64_t n, row_bytes;

  // Those of each member, of whom there are so many.
  template <class Byte>
  std::vector<std::span<Byte>> parts(const std::vector<int64_t>& counts) const {
    std::vector<std::span<Byte>> all;
    std::byte* at = data;
    for (const int64_t n_of_member : counts) {
      all.emplace_back(at, static_cast<size_t>(n_of_member * row_bytes));
      at += n_of_member * row_bytes;
    }
    FATHOM_CHECK(at == data + n * row_bytes);
    return all;
  }
};
PackedRows new_packed(Context& ctx, int64_t n, int64_t row_bytes) {
  return {static_cast<std::byte*>(ctx.arena.allocate(static_cast<size_t>(n * row_bytes))), n, row_bytes};
}

// Where only the pass that moves rows on knows how many there are.
struct OwnedRows {
  std::unique_ptr<std::byte[]> memory;
  PackedRows packed{};
};
OwnedRows new_owned(int64_t n, int64_t row_bytes) {
  OwnedRows rows{std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(n * row_bytes))};
  rows.packed = {rows.memory.get(), n, row_bytes};
  return rows;
}

// How the rows of an exchange travel.
struct RowWay {
  RowFormat format;
  int64_t n_raw;  // columns at the end that go as they are
  int64_t bytes_of(int64_t cols) const { return row_bytes(format, cols, n_raw); }
};

// What a message of rows is, for Traffic.
struct RowMessage {
  bool returns, across;
};

std::vector<int64_t> counts_of(const Hop& hop) {
  std::vector<int64_t> counts;
  for (const auto& rows : hop.sent) counts.push_back(std::ssize(rows));
  return counts;
}
int64_t n_sent(const Hop& hop) {
  int64_t n = 0;
  for (const auto& rows : hop.sent) n += std::ssize(rows);
  return n;
}

// Tells the members how many rows they get.
StagePass count_rows(const RankGroup& group, Hop& hop, int tag) {
  hop.received.assign(hop.sent.size(), 0);
  const std::vector<int64_t> counts = counts_of(hop);
  std::vector<ConstBytes> sent;
  std::vector<Bytes> received;
  for (size_t i = 0; i < counts.size(); ++i) {
    sent.push_back(std::as_bytes(std::span(&counts[i], 1)));
    received.push_back(std::as_writable_bytes(std::span(&hop.received[i], 1)));
  }
  co_await arrival(all_to_all(group, sent, received, tag));
}

// n_there and n_here: rows that go to each member, and come from it.
StagePass exchange_rows(const RankGroup& group, PackedRows sent, const std::vector<int64_t>& n_there,
                        PackedRows received, const std::vector<int64_t>& n_here, RowMessage message, int tag,
                        Traffic& traffic) {
  const int64_t n_leave = sent.n - n_there[static_cast<size_t>(group.index)];
  const double begin = monotonic_s();
  co_await arrival(all_to_all(group, sent.parts<const std::byte>(n_there), received.parts<std::byte>(n_here), tag));
  const int64_t bytes = n_leave * sent.row_bytes;
  (message.across ? traffic.across_nodes : traffic.within_node) += bytes;
  if (traffic.messages != nullptr) {
    traffic.messages->push_back({message.returns, begin, monotonic_s(), bytes});
  }
}
// As the hop has it, and back.
StagePass send_packed(const RankGroup& group, const Hop& hop, PackedRows sent, PackedRows received, bool across,
                      int tag, Traffic& traffic) {
  co_await exchange_rows(group, sent, counts_of(hop), received, hop.received, {/*returns=*/false, across}, tag,
                         traffic);
}
StagePass return_packed(const RankGroup& group, const Hop& hop, PackedRows sent, PackedRows received, bool across,
                        int tag, Traffic& traffic) {
  co_await exchange_rows(group, sent, hop.received, received, counts_of(hop), {/*returns=*/true, across}, tag, traffic);
}

// Those of `rows` [rows, cols] that the hop sends.
PackedRows pack_sent(Context& ctx, const Hop& hop, Tensor rows, RowWay way) {
  const PackedRows packed = new_packed(ctx, n_sent(hop), way.bytes_of(rows.cols()));
  const ArenaScope scope(ctx.arena);
  const Tensor chosen = new_f32(ctx, {packed.n, rows.cols()});
  int64_t at = 0;
  for (const auto& of_member : hop.sent) {
    for (const int32_t row : of_member) std::copy_n(rows.f32_row(row), rows.cols(), chosen.f32_row(at++));
  }
  encode_rows(ctx.pool, way.format, chosen, way.n_raw, packed.data);
  return packed;
}
PackedRows pack_all(Context& ctx, Tensor rows, RowWay way) {
  const PackedRows packed = new_packed(ctx, rows.rows(), way.bytes_of(rows.cols()));
  encode_rows(ctx.pool, way.format, rows, way.n_raw, packed.data);
  return packed;
}
void unpack(ThreadPool& pool, Tensor rows, PackedRows packed, RowWay way) {
  decode_rows(pool, way.format, rows, way.n_raw, packed.data);
}
// rows [rows, cols] += what each of them has become, summed in the order of the members.
void unpack_and_add(Context& ctx, const Hop& hop, Tensor rows, PackedRows packed, RowWay way) {
  const ArenaScope scope(ctx.arena);
  const Tensor parts = new_f32(ctx, {packed.n, rows.cols()});
  unpack(ctx.pool, parts, packed, way);
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

// What follows goes on beside the thread that computes: it uses no memory but its own, what it is given, and the hops.

constexpr int kTagsOfDispatch = 4, kTagsOfDispatchAgain = 2, kTagsOfCombine = 2;

// Inside of a node, bytes as they came.
StagePass pass_on(const RankGroup& within, const Hop& hop, PackedRows at_node, PackedRows arrived, int tag,
                  Traffic& traffic) {
  const OwnedRows sent = new_owned(n_sent(hop), at_node.row_bytes);
  std::byte* to = sent.packed.data;
  for (const auto& of_member : hop.sent) {
    for (const int32_t row : of_member) {
      to = std::copy_n(at_node.data + row * at_node.row_bytes, at_node.row_bytes, to);
    }
  }
  co_await send_packed(within, hop, sent.packed, arrived, /*across=*/false, tag, traffic);
}

// Rows with their choices (with_choices()) to the nodes, and there to the ranks that hold `each` experts.
StagePass dispatch(const ExpertGroup& group, ExpertsHere& here, PackedRows sent, int64_t k, int each,
                   OwnedRows& arrived, int tag, Traffic& traffic) {
  co_await count_rows(group.across, here.across, tag);
  OwnedRows at_node = new_owned(here.across.n_received(), sent.row_bytes);
  co_await send_packed(group.across, here.across, sent, at_node.packed, /*across=*/true, tag + 1, traffic);

  const auto bytes_of_ids = static_cast<size_t>(k) * sizeof(int32_t);
  std::vector<int32_t> ids(static_cast<size_t>(at_node.packed.n * k));
  for (int64_t row = 0; row < at_node.packed.n; ++row) {
    const std::byte* const end = at_node.packed.data + (row + 1) * sent.row_bytes;
    std::memcpy(ids.data() + row * k, end - bytes_of_ids, bytes_of_ids);
  }
  const int per_node = group.within.size();
  here.within = make_hop(Tensor(ids.data(), Format::i32, {at_node.packed.n, k}), per_node, [&](int32_t e) {
    return e / each / per_node == group.across.index ? e / each % per_node : -1;
  });
  if (per_node == 1) {
    here.within.received = {at_node.packed.n};
    arrived = std::move(at_node);
    co_return;
  }
  co_await count_rows(group.within, here.within, tag + 2);
  arrived = new_owned(here.within.n_received(), sent.row_bytes);
  co_await pass_on(group.within, here.within, at_node.packed, arrived.packed, tag + 3, traffic);
}

// The way of an earlier dispatch().
StagePass dispatch_again(const ExpertGroup& group, const ExpertsHere& here, PackedRows sent, PackedRows arrived,
                         int tag, Traffic& traffic) {
  const bool is_one_hop = group.within.size() == 1;
  const OwnedRows at_node = new_owned(is_one_hop ? 0 : here.across.n_received(), sent.row_bytes);
  co_await send_packed(group.across, here.across, sent, is_one_hop ? arrived : at_node.packed, /*across=*/true, tag,
                       traffic);
  if (is_one_hop) co_return;
  co_await pass_on(group.within, here.within, at_node.packed, arrived, tag + 1, traffic);
}

// Back, summed by each node: sums [rows of here.across.sent].
StagePass combine(const ExpertGroup& group, const ExpertsHere& here, PackedRows outputs, PackedRows sums, int64_t cols,
                  RowWay way, int tag, Traffic& traffic) {
  if (group.within.size() == 1) {
    co_await return_packed(group.across, here.across, outputs, sums, /*across=*/true, tag + 1, traffic);
    co_return;
  }
  const OwnedRows parts = new_owned(n_sent(here.within), way.bytes_of(cols)),
                  of_node = new_owned(here.across.n_received(), way.bytes_of(cols));
  co_await return_packed(group.within, here.within, outputs, parts.packed, /*across=*/false, tag, traffic);
  {
    ThreadPool alone(1);
    Arena arena;
    Context ctx{alone, arena};
    const Tensor summed = zeros(ctx, of_node.packed.n, cols);
    unpack_and_add(ctx, here.within, summed, parts.packed, way);
    encode_rows(alone, way.format, summed, way.n_raw, of_node.packed.data);
  }
  co_await return_packed(group.across, here.across, of_node.packed, sums, /*across=*/true, tag + 1, traffic);
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
                          const MoeSaved& s, ExpertsHere& here, Context& made_again, PassThread& beside, int& tag,
                          Traffic& traffic) {
  const int64_t hidden = s.input.cols(), k = s.topk_ids.cols(), cols = hidden + 2 * k;
  const auto each = static_cast<int>(model.config.router.n_routed_experts / group.size());
  const int per_node = group.within.size();
  const RowWay to{dispatch_format(model.precision), 2 * k}, back{combine_format(model.precision), 0};
  here.across = make_hop(s.topk_ids, group.across.size(), [&](int32_t e) { return e / each / per_node; });
  const PackedRows packed =
      pack_sent(made_again, here.across, with_choices(made_again, s.input, s.topk_weights, s.topk_ids), to);
  OwnedRows arrived;
  co_await beside.run(dispatch(group, here, packed, k, each, arrived, tag, traffic));
  tag += kTagsOfDispatch;
  // Through this rank's experts.
  const Tensor rows = new_f32(ctx, {arrived.packed.n, cols});
  unpack(ctx.pool, rows, arrived.packed, to);
  arrived.memory.reset();
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

  const PackedRows outputs = pack_all(made_again, y, back),
                   sums = new_packed(made_again, n_sent(here.across), back.bytes_of(hidden));
  co_await beside.run(combine(group, here, outputs, sums, hidden, back, tag, traffic));
  tag += kTagsOfCombine;
  unpack_and_add(made_again, here.across, out, sums, back);
}

StagePass experts_backward(Context& ctx, const Model& model, const ExpertGroup& group, const MoeWeights& w,
                           Tensor d_input, Tensor d_weights, Tensor d_out, ExpertsHere& here, PassThread& beside,
                           int& tag, Traffic& traffic) {
  const int64_t hidden = d_out.cols(), k = d_weights.cols();
  const RowWay to{dispatch_format(model.precision), 0}, back{combine_format(model.precision), k};
  const PackedRows packed = pack_sent(ctx, here.across, d_out, to);
  const int64_t n_here = here.within.n_received();
  const PackedRows arrived = new_packed(ctx, n_here, packed.row_bytes);
  co_await beside.run(dispatch_again(group, here, packed, arrived, tag, traffic));
  tag += kTagsOfDispatchAgain;
  const Tensor d_y = new_f32(ctx, {n_here, hidden});
  unpack(ctx.pool, d_y, arrived, to);

  const Tensor d_rows = zeros(ctx, n_here, hidden + k);
  layer_experts_backward_input(ctx, model, w, here.saved, d_rows.columns(0, hidden), d_rows.columns(hidden, k), d_y,
                               here.grads);
  const PackedRows gradients = pack_all(ctx, d_rows, back),
                   sums = new_packed(ctx, n_sent(here.across), back.bytes_of(hidden + k));
  co_await beside.run(combine(group, here, gradients, sums, hidden + k, back, tag, traffic));
  tag += kTagsOfCombine;
  const Tensor d_all = zeros(ctx, d_out.rows(), hidden + k);
  unpack_and_add(ctx, here.across, d_all, sums, back);
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
  co_await count_rows(group, there, tag++);
  const RowWay to{formats.there, k}, from{formats.back, 0};
  const PackedRows arrived = new_packed(ctx, there.n_received(), to.bytes_of(hidden + k));
  StagePass away = send_packed(group, there, pack_all(ctx, packed, to), arrived, /*across=*/false, tag++, traffic);
  away.go_on();
  meanwhile();
  co_await std::move(away);
  const Tensor rows = new_f32(ctx, {arrived.n, hidden + k});
  unpack(ctx.pool, rows, arrived, to);

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
  const PackedRows returned = new_packed(ctx, n_sent(back), from.bytes_of(hidden));
  co_await return_packed(group, back, pack_all(ctx, outputs, from), returned, /*across=*/false, tag++, traffic);
  unpack_and_add(ctx, back, y_sorted, returned, from);
}

}  // namespace fathom
