// Linear layers without bias: y = x W^T, as every projection of the family, and the same grouped over experts.
// Activations are f32; rows may be strided. `accumulate` adds to the output instead of overwriting it. Every element of
// a result is summed in an order that depends on the shapes alone: the same bits for any number of threads, and for the
// first two forms the same bits for a row whatever other rows stand beside it.
#pragma once

#include <initializer_list>

#include "ops/context.h"
#include "ops/rounding.h"

namespace fathom {

// What linear layers read. A weight in panels of a block format (number/panels.h) meets rows in 8 bits, with a scale
// for each of its blocks, and one in FP8 rows in a range of their own; they are made once for all weights that share an
// input. The forms but x are u8 [tokens, bytes] as ops/cpu/panel_kernels.h lays them out, or absent.
struct LinearInput {
  Tensor x;  // [tokens, in] f32; without data after dispatch() when no weight reads it
  Tensor by_32, by_256, by_f8;
  Tensor by_16;                            // on a device alone: for bf16 and FP8
  Tensor rows;                             // on a device, behind dispatch(): [n] i32, which row of the forms each is
  LinearInput(Tensor input) : x(input) {}  // NOLINT(google-explicit-constructor): any rows are an input
  LinearInput slice(int64_t begin, int64_t n) const;  // rows
};
inline constexpr Tensor LinearInput::*kInputForms[] = {&LinearInput::x, &LinearInput::by_32, &LinearInput::by_256,
                                                       &LinearInput::by_f8, &LinearInput::by_16};
// The form that a weight reads.
Tensor LinearInput::*form_for(const Context& ctx, Tensor w);
// The input in all the forms that `weights` read; those that are absent read none. Memory from ctx.arena.
LinearInput make_linear_input(Context& ctx, Tensor x, std::initializer_list<Tensor> weights);

// y[t, o] = sum_i x[t, i] w[o, i].   x: [tokens, in], w: [out, in], y: [tokens, out]
// w is f32, or panels of any format: then the input must have the form that w reads, and nothing accumulates or rounds.
void linear(Context& ctx, Tensor y, const LinearInput& x, Tensor w, bool accumulate = false);

// Several products, none of which writes what another reads or writes, in one go: the threads share the work of all.
struct LinearCall {
  Tensor y;
  LinearInput x;
  Tensor w;
  Tensor offsets{};     // of experts, as grouped_linear takes them
  Tensor experts{};     // on a device: those that have rows, as Dispatch has them
  Rounding rounding{};  // of f32 operands, on the CPU; rows that calls share are rounded once
};
void linear(Context& ctx, std::initializer_list<LinearCall> calls);

// dx[t, i] = sum_o dy[t, o] w[o, i].   dy: [tokens, out], w: [out, in], dx: [tokens, in]
void linear_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor w, bool accumulate = false,
                           const Rounding& rounding = {});

// dw[o, i] += sum_t dy[t, o] x[t, i].   dy: [tokens, out], x: [tokens, in], dw: [out, in]
// Several in one go, as linear() takes them; calls without dw are left out. With offsets, of experts (see below).
struct WeightGradientCall {
  Tensor dw, dy, x;
  Tensor offsets{};
  Rounding rounding{};
};
void linear_backward_weight(Context& ctx, std::initializer_list<WeightGradientCall> calls);

// The same for experts: rows offsets[e] .. offsets[e+1] of x belong to expert e and meet w[e]. No padding; an expert
// without rows costs nothing (its dw gets nothing added). w, dw: [experts, out, in]; offsets: [experts + 1] i32.
void grouped_linear(Context& ctx, Tensor y, const LinearInput& x, Tensor w, Tensor offsets, bool accumulate = false);
void grouped_linear_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor w, Tensor offsets,
                                   bool accumulate = false, const Rounding& rounding = {});

namespace plain {
void linear(Tensor y, Tensor x, Tensor w, bool accumulate = false);
void linear_backward_input(Tensor dx, Tensor dy, Tensor w, bool accumulate = false);
void linear_backward_weight(Tensor dw, Tensor dy, Tensor x);
void grouped_linear(Tensor y, Tensor x, Tensor w, Tensor offsets, bool accumulate = false);
void grouped_linear_backward_input(Tensor dx, Tensor dy, Tensor w, Tensor offsets, bool accumulate = false);
void grouped_linear_backward_weight(Tensor dw, Tensor dy, Tensor x, Tensor offsets);
}  // namespace plain

}  // namespace fathom
