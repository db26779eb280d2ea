// The trainer's whole C interface to libtorch's dispatcher and autograd engine.
// Every function returns 0 or a Status; none throws. Tensors are at::Tensor*, as in tch.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// Why a call failed. The text of the exception is kept apart (bastion_last_error): it may hold values.
enum Status : int32_t { kOk = 0, kFailed = 1, kUnknownOperator = 2, kArgumentMismatch = 3 };

enum ArgumentKind : int32_t {
  kArgNone, kArgTensor, kArgTensors, kArgOptionalTensors, kArgInt, kArgInts, kArgFloat, kArgFloats, kArgBool, kArgBools, kArgString,
  kArgDtype, kArgNumberInt, kArgNumberFloat, kArgNumberBool, kArgDevice,
};

// One argument: scalars in `integer`/`number`; lists in `data` with `count` elements
// (at::Tensor* for kArgTensor, at::Tensor* const* for lists of tensors, a null pointer being None).
struct BastionArgument {
  int32_t kind;
  int32_t count;
  int64_t integer;
  double number;
  const void* data;
};

int32_t bastion_setup(int32_t threads);
int32_t bastion_denormals_flushed(int32_t* flushed);
int32_t bastion_prefer_fast_f32(int32_t fast);
int32_t bastion_use_flash_attention(int32_t use_it);
// The backward pass of the operator that made this tensor runs on the default f32 kernels, whatever is chosen by then.
int32_t bastion_backward_on_default_kernels(const void* tensor);
int32_t bastion_find(const char* name, const char* overload, void** operator_handle);
void bastion_release(void* operator_handle);
int32_t bastion_schema(const void* operator_handle, char* text, size_t capacity);
int32_t bastion_call(const void* operator_handle, const BastionArgument* arguments, size_t argument_count,
                     void** outputs, size_t output_count);
// See recurrence.h; `recurrent`, `bias` and `c0` may be null.
int32_t bastion_recurrence(int64_t cell, int32_t reverse, const void* gates, const void* recurrent, const void* weight,
                           const void* bias, const void* h0, const void* c0, void** outputs, size_t output_count);
// See products.h. `tiles`, and each of `outputs` (sums, left and right diagonals), are new tensors.
int32_t bastion_gram(const void* rows, int32_t lanes, void** tiles);
int32_t bastion_gram_products(const void* tiles, const void* rows, int32_t lanes, void* outputs[3]);
// `blocks` are (first, count) pairs; `fine` becomes 0 when a sum is not finite or beyond the limit, else 1.
int32_t bastion_contract(const void* left, const void* right, const void* factors, const int64_t* blocks, size_t block_count,
                         double units, double limit, int64_t* sums, size_t sum_count, int32_t fresh, int32_t lanes, int32_t* fine);
// Calls body(context, task) for every task below `tasks`, on libtorch's threads and the caller's. The body does not throw.
int32_t bastion_parallel(size_t tasks, void (*body)(const void*, size_t), const void* context);
int32_t bastion_edge(const void* tensor, void** edge);
void bastion_release_edge(void* edge);
int32_t bastion_backward(const void* root, const void* root_gradient, void* const* edges, size_t edge_count,
                         int32_t keep_graph, void** gradients);
int32_t bastion_version(const void* tensor, uint64_t* version);
// `device`: a c10::DeviceType; its first device.
int32_t bastion_place(const void* tensor, int32_t device, void** placed);
int32_t bastion_place_beside(const void* tensor, const void* other, void** placed);
int32_t bastion_start_cuda(uint64_t* memory_bytes, uint64_t* free_bytes);
void bastion_last_error(char* text, size_t capacity);
}
