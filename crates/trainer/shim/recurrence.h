// One direction of one recurrent layer over input projections, as a single node of the autograd graph. Throws.
#pragma once
#include <ATen/ATen.h>

#include <optional>
#include <vector>

namespace bastion {

enum class Cell : int64_t { kLstm = 0, kGru = 1, kTanh = 2, kRelu = 3 };

// gates: [N, T, G·H], contiguous: the input projections with their bias, and with the recurrent bias but for GRU's. Its
// memory is taken over: nothing else may read it. Its gradient is that of the projections.
// recurrent: [N, T, G·H], GRU only: stands for the recurrent projections, whose gradient is given to it; never read.
// weight: [G·H, H]; bias: [G·H], GRU's recurrent one; h0, c0: [N, H].
// Returns the outputs [N, T, H], the last output and, for LSTM, the last cell state, [N, H].
std::vector<at::Tensor> recurrence(Cell cell, bool reverse, const at::Tensor& gates, const std::optional<at::Tensor>& recurrent,
                                   const at::Tensor& weight, const std::optional<at::Tensor>& bias, const at::Tensor& h0,
                                   const std::optional<at::Tensor>& c0);

}  // namespace bastion
