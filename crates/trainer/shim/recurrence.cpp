#include "recurrence.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <stdexcept>

#include "cells.h"

namespace bastion {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Fewest elements of a step that are worth a second thread.
constexpr int64_t kElementsOfAThread = 4096;

int64_t gates_of(Cell cell) { return cell == Cell::kLstm ? 4 : cell == Cell::kGru ? 3 : 1; }

struct Sizes {
  int64_t rows, steps, hidden, width;
};

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

bool is(const at::Tensor& value, at::IntArrayRef shape, const at::Tensor& like) {
  return value.defined() && value.sizes() == shape && value.scalar_type() == like.scalar_type() && value.is_cpu();
}

// The loops below trust these sizes.
Sizes sizes_of(Cell cell, const at::Tensor& gates, const std::optional<at::Tensor>& recurrent, const at::Tensor& weight,
               const std::optional<at::Tensor>& bias, const at::Tensor& h0, const std::optional<at::Tensor>& c0) {
  require(gates.dim() == 3 && gates.is_cpu() && gates.is_contiguous(), "projections are not a contiguous [rows, steps, gates]");
  require(gates.scalar_type() == at::kFloat || gates.scalar_type() == at::kDouble, "projections are not f32 or f64");
  require(weight.dim() == 2, "the recurrent weight is no matrix");
  const Sizes sizes{gates.size(0), gates.size(1), weight.size(1), gates.size(2)};
  require(sizes.steps > 0 && sizes.hidden > 0, "a sequence or a state without elements");
  require(sizes.width == gates_of(cell) * sizes.hidden, "projections are not as wide as the gates");
  require(is(weight, {sizes.width, sizes.hidden}, gates), "the recurrent weight does not fit");
  require(is(h0, {sizes.rows, sizes.hidden}, gates), "the first output does not fit");
  require(c0.has_value() == (cell == Cell::kLstm), "a cell state is LSTM's");
  require(!c0 || is(*c0, {sizes.rows, sizes.hidden}, gates), "the first cell state does not fit");
  require(!bias || (cell == Cell::kGru && is(*bias, {sizes.width}, gates)), "the recurrent bias does not fit");
  require(!recurrent || (cell == Cell::kGru && is(*recurrent, gates.sizes(), gates)), "the recurrent projections do not fit");
  return sizes;
}

template <typename Body>
void in_parallel(const Sizes& sizes, Body body) {
  const int64_t grain = std::max<int64_t>(1, kElementsOfAThread / sizes.width);
  at::parallel_for(0, sizes.rows, grain, body);
}

// Calls `body` with a type for the cell.
template <typename Body>
void of_cell(Cell cell, Body body) {
  switch (cell) {
    case Cell::kLstm: return body(Lstm{});
    case Cell::kGru: return body(Gru{});
    case Cell::kTanh: return body(Plain<false>{});
    case Cell::kRelu: return body(Plain<true>{});
  }
  throw std::invalid_argument("no such cell");
}

struct Order {
  int64_t steps;
  bool reverse;
  // The place of the n-th step that is made.
  int64_t at(int64_t n) const { return reverse ? steps - 1 - n : n; }
};

// What is read of the step before: the first state, or the place before in a sequence of states.
template <typename T>
struct Before {
  const T* at;
  int64_t stride;
};

template <typename T>
Before<T> before(const at::Tensor& first, const at::Tensor& states, const Sizes& sizes, const Order& order, int64_t n) {
  if (n == 0) return {first.const_data_ptr<T>(), sizes.hidden};
  return {states.const_data_ptr<T>() + order.at(n - 1) * sizes.hidden, sizes.steps * sizes.hidden};
}

struct Made {
  at::Tensor outputs, kept, now;
};

template <typename T>
Made run_forward(Cell cell, const Sizes& sizes, const Order& order, const at::Tensor& gates, const at::Tensor& weight,
                 const std::optional<at::Tensor>& bias, const at::Tensor& h0, const std::optional<at::Tensor>& c0) {
  const bool keeps = cell == Cell::kLstm || cell == Cell::kGru;
  Made made;
  made.outputs = at::empty({sizes.rows, sizes.steps, sizes.hidden}, gates.options());
  made.kept = keeps ? at::empty_like(made.outputs) : at::Tensor();
  made.now = h0.clone(at::MemoryFormat::Contiguous);
  const at::Tensor turned = weight.t().contiguous();
  at::Tensor product = at::empty({sizes.rows, sizes.width}, gates.options());
  const at::Tensor cell0 = c0 ? c0->contiguous() : at::Tensor();
  const at::Tensor output0 = h0.contiguous();
  T* gate = gates.data_ptr<T>();
  for (int64_t n = 0; n < sizes.steps; ++n) {
    const int64_t at = order.at(n);
    if (bias) at::addmm_out(product, *bias, made.now, turned);
    else at::mm_out(product, made.now, turned);
    Before<T> previous{nullptr, 0};
    if (cell == Cell::kLstm) previous = before<T>(cell0, made.kept, sizes, order, n);
    if (cell == Cell::kGru) previous = before<T>(output0, made.outputs, sizes, order, n);
    const int64_t stride = sizes.steps * sizes.hidden;
    const Forward<T> step{sizes.hidden, gate + at * sizes.width, sizes.steps * sizes.width, product.const_data_ptr<T>(),
                          previous.at, previous.stride,
                          keeps ? made.kept.data_ptr<T>() + at * sizes.hidden : nullptr, stride,
                          made.outputs.data_ptr<T>() + at * sizes.hidden, stride, made.now.data_ptr<T>()};
    of_cell(cell, [&](auto of) {
      in_parallel(sizes, [&](int64_t begin, int64_t end) { forward_rows<decltype(of)>(step, begin, end); });
    });
  }
  return made;
}

struct Gradients {
  at::Tensor gates, recurrent, h0, c0;
};

// What the forward pass left.
struct Left {
  at::Tensor gates, kept, outputs, weight, h0, c0;
};

template <typename T>
Gradients run_backward(Cell cell, const Sizes& sizes, const Order& order, bool with_recurrent, const Left& left,
                       const at::Tensor& of_outputs, const at::Tensor& of_last, const at::Tensor& of_last_cell) {
  const bool is_lstm = cell == Cell::kLstm, is_gru = cell == Cell::kGru;
  const auto state = [&](const at::Tensor& given) {
    return given.defined() ? given.clone(at::MemoryFormat::Contiguous) : at::zeros({sizes.rows, sizes.hidden}, left.gates.options());
  };
  Gradients found;
  found.gates = at::empty_like(left.gates);
  found.recurrent = with_recurrent ? at::empty_like(left.gates) : at::Tensor();
  at::Tensor carried = state(of_last), carried_cell = is_lstm ? state(of_last_cell) : at::Tensor();
  at::Tensor now = at::empty({sizes.rows, sizes.width}, left.gates.options());
  const at::Tensor given = of_outputs.defined() ? of_outputs.contiguous() : at::Tensor();
  const at::Tensor cell0 = is_lstm ? left.c0.contiguous() : at::Tensor();
  const at::Tensor output0 = left.h0.contiguous();
  const at::Tensor weight = left.weight.contiguous();
  const int64_t stride = sizes.steps * sizes.hidden;
  for (int64_t n = sizes.steps - 1; n >= 0; --n) {
    const int64_t at = order.at(n);
    Before<T> previous{nullptr, 0};
    if (is_lstm) previous = before<T>(cell0, left.kept, sizes, order, n);
    if (is_gru) previous = before<T>(output0, left.outputs, sizes, order, n);
    const auto place = [&](const at::Tensor& of, int64_t width) { return of.defined() ? of.data_ptr<T>() + at * width : nullptr; };
    const Backward<T> step{sizes.hidden, place(left.gates, sizes.width), sizes.steps * sizes.width,
                           place(left.kept, sizes.hidden), stride, previous.at, previous.stride,
                           place(left.outputs, sizes.hidden), stride, place(given, sizes.hidden),
                           carried.data_ptr<T>(), is_lstm ? carried_cell.data_ptr<T>() : nullptr,
                           place(found.gates, sizes.width), place(found.recurrent, sizes.width), now.data_ptr<T>()};
    of_cell(cell, [&](auto of) {
      in_parallel(sizes, [&](int64_t begin, int64_t end) { backward_rows<decltype(of)>(step, begin, end); });
    });
    // Of GRU part of the output's gradient passes by the product.
    if (is_gru) at::addmm_out(carried, carried, now, weight);
    else at::mm_out(carried, now, weight);
  }
  found.h0 = carried;
  found.c0 = carried_cell;
  return found;
}

struct Recurrence : torch::autograd::Function<Recurrence> {
  static variable_list forward(AutogradContext* context, const at::Tensor& gates, const at::Tensor& weight, const at::Tensor& h0,
                               const std::optional<at::Tensor>& c0, const std::optional<at::Tensor>& recurrent,
                               const std::optional<at::Tensor>& bias, int64_t kind, bool reverse) {
    const Cell cell = static_cast<Cell>(kind);
    const Sizes sizes = sizes_of(cell, gates, recurrent, weight, bias, h0, c0);
    const Order order{sizes.steps, reverse};
    const Made made = gates.scalar_type() == at::kFloat ? run_forward<float>(cell, sizes, order, gates, weight, bias, h0, c0)
                                                        : run_forward<double>(cell, sizes, order, gates, weight, bias, h0, c0);
    context->set_materialize_grads(false);
    context->saved_data["kind"] = kind;
    context->saved_data["reverse"] = reverse;
    context->saved_data["recurrent"] = recurrent.has_value();
    context->save_for_backward({gates, made.kept, made.outputs, weight, h0, c0.value_or(at::Tensor())});
    variable_list results{made.outputs, made.now};
    // A copy: the states of all steps are kept for the backward pass and are no result.
    if (cell == Cell::kLstm) results.push_back(made.kept.select(1, order.at(sizes.steps - 1)).clone());
    return results;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const Left left{saved[0], saved[1], saved[2], saved[3], saved[4], saved[5]};
    const Cell cell = static_cast<Cell>(context->saved_data["kind"].toInt());
    const Sizes sizes{left.gates.size(0), left.gates.size(1), left.weight.size(1), left.gates.size(2)};
    const Order order{sizes.steps, context->saved_data["reverse"].toBool()};
    const bool with_recurrent = context->saved_data["recurrent"].toBool();
    const at::Tensor none, of_last_cell = gradients.size() > 2 ? gradients[2] : none;
    const auto run = left.gates.scalar_type() == at::kFloat ? run_backward<float> : run_backward<double>;
    const Gradients found = run(cell, sizes, order, with_recurrent, left, gradients[0], gradients[1], of_last_cell);
    return {found.gates, none, found.h0, found.c0, found.recurrent, none, none, none};
  }
};

}  // namespace

std::vector<at::Tensor> recurrence(Cell cell, bool reverse, const at::Tensor& gates, const std::optional<at::Tensor>& recurrent,
                                   const at::Tensor& weight, const std::optional<at::Tensor>& bias, const at::Tensor& h0,
                                   const std::optional<at::Tensor>& c0) {
  return Recurrence::apply(gates, weight.detach(), h0, c0, recurrent, bias ? std::optional<at::Tensor>(bias->detach()) : bias,
                           static_cast<int64_t>(cell), reverse);
}

}  // namespace bastion
