#include "products.h"
#include "recurrence.h"
#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ScalarOps.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <xmmintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

namespace {

thread_local std::string last_error;

// libtorch's warnings and the text of uncaught exceptions may quote values (rule 7): neither is printed.
struct SilentWarnings final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

struct Mismatch final : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void mismatch(const c10::Argument& formal, const char* wanted) {
  throw Mismatch("argument '" + formal.name() + "' must be " + wanted);
}

// Which f32 matrix kernels run while a node of the backward pass does: the default ones, then again what was chosen.
struct UseDefaultKernels final : torch::autograd::FunctionPreHook {
  explicit UseDefaultKernels(std::shared_ptr<std::string> chosen) : chosen_(std::move(chosen)) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& gradients) override {
    *chosen_ = at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::MEDIUM ? "medium" : "highest";
    at::globalContext().setFloat32MatmulPrecision("highest");
    return gradients;
  }

 private:
  std::shared_ptr<std::string> chosen_;
};

struct UseChosenKernels final : torch::autograd::FunctionPostHook {
  explicit UseChosenKernels(std::shared_ptr<std::string> chosen) : chosen_(std::move(chosen)) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list&) override {
    at::globalContext().setFloat32MatmulPrecision(*chosen_);
    return outputs;
  }

 private:
  std::shared_ptr<std::string> chosen_;
};

template <typename Body>
int32_t guarded(Body body) noexcept {
  try {
    return body();
  } catch (const Mismatch& error) {
    last_error = error.what();
    return kArgumentMismatch;
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown exception";
  }
  return kFailed;
}

const at::Tensor& tensor_at(const void* pointer) { return *static_cast<const at::Tensor*>(pointer); }

at::Tensor wrapped_number(const BastionArgument& actual) {
  at::Tensor number = actual.kind == kArgNumberFloat ? at::scalar_to_tensor(actual.number)
      : actual.kind == kArgNumberInt                 ? at::scalar_to_tensor(actual.integer)
                                                  : at::scalar_to_tensor(actual.integer != 0);
  number.unsafeGetTensorImpl()->set_wrapped_number(true);
  return number;
}

template <typename Element>
c10::List<Element> list_of(const BastionArgument& actual) {
  c10::List<Element> list;
  list.reserve(actual.count);
  const auto* data = static_cast<const Element*>(actual.data);
  for (int32_t i = 0; i < actual.count; ++i) list.push_back(data[i]);
  return list;
}

c10::IValue tensor_list(const c10::Argument& formal, const BastionArgument& actual, bool optional_elements) {
  if (actual.kind != kArgTensors && !(optional_elements && actual.kind == kArgOptionalTensors)) mismatch(formal, "tensors");
  const auto* data = static_cast<const at::Tensor* const*>(actual.data);
  c10::List<at::Tensor> plain;
  c10::List<std::optional<at::Tensor>> optional;
  for (int32_t i = 0; i < actual.count; ++i) {
    if (!optional_elements) {
      if (data[i] == nullptr) mismatch(formal, "tensors without None");
      plain.push_back(*data[i]);
    } else {
      optional.push_back(data[i] ? std::optional<at::Tensor>(*data[i]) : std::nullopt);
    }
  }
  return optional_elements ? c10::IValue(optional) : c10::IValue(plain);
}

c10::IValue list(const c10::Argument& formal, const c10::TypePtr& element, const BastionArgument& actual) {
  switch (element->kind()) {
    case c10::TypeKind::TensorType:
      return tensor_list(formal, actual, false);
    case c10::TypeKind::OptionalType:
      return tensor_list(formal, actual, true);
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      if (actual.kind == kArgInts) return list_of<int64_t>(actual);
      break;
    case c10::TypeKind::FloatType:
      if (actual.kind == kArgFloats) return list_of<double>(actual);
      break;
    case c10::TypeKind::BoolType:
      if (actual.kind == kArgBools) return list_of<bool>(actual);
      break;
    default:
      break;
  }
  mismatch(formal, "a list of its element type");
}

// Only the dtypes the type system knows: unchecked, to(dtype=9999) would succeed.
c10::IValue dtype(const c10::Argument& formal, const BastionArgument& actual) {
  constexpr int64_t allowed[] = {0 /*u8*/, 3 /*i32*/, 4 /*i64*/, 6 /*f32*/, 7 /*f64*/, 11 /*bool*/};
  if (actual.kind != kArgDtype) mismatch(formal, "a dtype");
  if (std::find(std::begin(allowed), std::end(allowed), actual.integer) == std::end(allowed)) mismatch(formal, "a known dtype");
  return actual.integer;
}

c10::IValue number(const c10::Argument& formal, const BastionArgument& actual) {
  switch (actual.kind) {
    case kArgInt:
    case kArgNumberInt:
      return c10::IValue(at::Scalar(actual.integer));
    case kArgFloat:
    case kArgNumberFloat:
      return c10::IValue(at::Scalar(actual.number));
    case kArgBool:
    case kArgNumberBool:
      return c10::IValue(at::Scalar(actual.integer != 0));
    default:
      mismatch(formal, "a number");
  }
}

c10::Device first_of(int64_t type) {
  const auto device = static_cast<c10::DeviceType>(type);
  return c10::Device(device, device == c10::kCPU ? -1 : 0);
}

// callBoxed checks no types, so this does: a wrong IValue would be a type confusion in C++.
c10::IValue convert(const c10::Argument& formal, const c10::TypePtr& type, const BastionArgument& actual) {
  if (type->kind() == c10::TypeKind::OptionalType) {
    if (actual.kind == kArgNone) return c10::IValue();
    return convert(formal, type->castRaw<c10::OptionalType>()->getElementType(), actual);
  }
  if (actual.kind == kArgNone) {
    if (!formal.default_value()) mismatch(formal, "given");
    return *formal.default_value();
  }
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
      if (actual.kind == kArgTensor && actual.data != nullptr) return tensor_at(actual.data);
      if (actual.kind >= kArgNumberInt && actual.kind <= kArgNumberBool) return wrapped_number(actual);
      mismatch(formal, "a tensor");
    case c10::TypeKind::ListType:
      return list(formal, type->castRaw<c10::ListType>()->getElementType(), actual);
    case c10::TypeKind::NumberType:
      return number(formal, actual);
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      if (actual.kind == kArgInt) return actual.integer;
      mismatch(formal, "an integer");
    case c10::TypeKind::FloatType:
      if (actual.kind == kArgFloat) return actual.number;
      if (actual.kind == kArgInt) return static_cast<double>(actual.integer);
      mismatch(formal, "a float");
    case c10::TypeKind::BoolType:
      if (actual.kind == kArgBool) return actual.integer != 0;
      mismatch(formal, "a bool");
    case c10::TypeKind::StringType:
      if (actual.kind == kArgString) return std::string(static_cast<const char*>(actual.data), actual.count);
      mismatch(formal, "a string");
    case c10::TypeKind::ScalarTypeType:
      return dtype(formal, actual);
    case c10::TypeKind::DeviceObjType:
      if (actual.kind == kArgDevice) return first_of(actual.integer);
      mismatch(formal, "a device");
    case c10::TypeKind::MemoryFormatType:
      if (actual.kind == kArgInt && (actual.integer == 0 /*contiguous*/ || actual.integer == 1 /*preserve*/)) return actual.integer;
      mismatch(formal, "the contiguous or the preserved memory format");
    default:
      mismatch(formal, "left at its default");
  }
}

const c10::OperatorHandle& handle(const void* pointer) { return *static_cast<const c10::OperatorHandle*>(pointer); }

}  // namespace

extern "C" {

int32_t bastion_setup(int32_t threads) {
  return guarded([&] {
    static SilentWarnings silent;
    c10::WarningUtils::set_warning_handler(&silent);
    std::set_terminate([] { std::_Exit(70); });
    // Before the pool exists: its threads inherit this thread's floating-point mode (rule G6).
    at::globalContext().setFlushDenormal(true);
    at::globalContext().setDeterministicFillUninitializedMemory(true);
    at::set_num_threads(threads);
    at::parallel_for(0, threads, 1, [](int64_t, int64_t) { at::globalContext().setFlushDenormal(true); });
    return kOk;
  });
}

int32_t bastion_denormals_flushed(int32_t* flushed) {
  return guarded([&] {
    std::atomic<bool> all{true};
    constexpr unsigned kFlushAndZero = 0x8040;
    at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
      if ((_mm_getcsr() & kFlushAndZero) != kFlushAndZero) all = false;
    });
    *flushed = all ? 1 : 0;
    return kOk;
  });
}

int32_t bastion_prefer_fast_f32(int32_t fast) {
  return guarded([&] {
    at::globalContext().setFloat32MatmulPrecision(fast ? "medium" : "highest");
    return kOk;
  });
}

int32_t bastion_use_flash_attention(int32_t use_it) {
  return guarded([&] {
    at::globalContext().setSDPUseFlash(use_it != 0);
    return kOk;
  });
}

int32_t bastion_find(const char* name, const char* overload, void** operator_handle) {
  return guarded([&] {
    auto found = c10::Dispatcher::singleton().findSchema({name, overload});
    if (!found) return static_cast<int32_t>(kUnknownOperator);
    *operator_handle = new c10::OperatorHandle(*found);
    return static_cast<int32_t>(kOk);
  });
}

void bastion_release(void* operator_handle) { delete static_cast<c10::OperatorHandle*>(operator_handle); }

int32_t bastion_schema(const void* operator_handle, char* text, size_t capacity) {
  return guarded([&] {
    std::string schema = c10::toString(handle(operator_handle).schema());
    if (schema.size() + 1 > capacity) throw std::length_error("schema longer than the buffer");
    std::memcpy(text, schema.c_str(), schema.size() + 1);
    return kOk;
  });
}

int32_t bastion_call(const void* operator_handle, const BastionArgument* arguments, size_t argument_count,
                     void** outputs, size_t output_count) {
  return guarded([&] {
    const auto& op = handle(operator_handle);
    const auto& formals = op.schema().arguments();
    if (formals.size() != argument_count) throw Mismatch("wrong number of arguments");
    torch::jit::Stack stack;
    stack.reserve(argument_count);
    for (size_t i = 0; i < argument_count; ++i) stack.push_back(convert(formals[i], formals[i].real_type(), arguments[i]));
    op.callBoxed(stack);
    std::vector<at::Tensor> results;
    for (auto& value : stack) {
      if (value.isTensor()) results.push_back(value.toTensor());
      else if (value.isTensorList()) for (const at::Tensor& each : value.toTensorVector()) results.push_back(each);
      else throw Mismatch("a result that is no tensor");
    }
    if (results.size() != output_count) throw Mismatch("wrong number of results");
    for (const auto& each : results) if (!each.defined()) throw Mismatch("an undefined result");
    for (size_t i = 0; i < output_count; ++i) outputs[i] = new at::Tensor(results[i]);
    return kOk;
  });
}

int32_t bastion_recurrence(int64_t cell, int32_t reverse, const void* gates, const void* recurrent, const void* weight,
                           const void* bias, const void* h0, const void* c0, void** outputs, size_t output_count) {
  return guarded([&] {
    const auto optional = [](const void* pointer) { return pointer ? std::optional<at::Tensor>(tensor_at(pointer)) : std::nullopt; };
    const auto results = bastion::recurrence(static_cast<bastion::Cell>(cell), reverse != 0, tensor_at(gates), optional(recurrent),
                                             tensor_at(weight), optional(bias), tensor_at(h0), optional(c0));
    if (results.size() != output_count) throw Mismatch("wrong number of results");
    for (size_t i = 0; i < output_count; ++i) outputs[i] = new at::Tensor(results[i]);
    return kOk;
  });
}

int32_t bastion_gram(const void* rows, int32_t lanes, void** tiles) {
  return guarded([&] {
    *tiles = new at::Tensor(bastion::gram(tensor_at(rows), lanes));
    return kOk;
  });
}

int32_t bastion_gram_products(const void* tiles, const void* rows, int32_t lanes, void* outputs[3]) {
  return guarded([&] {
    const auto found = bastion::gram_products(tensor_at(tiles), tensor_at(rows), lanes);
    outputs[0] = new at::Tensor(found.sums);
    outputs[1] = new at::Tensor(found.left);
    outputs[2] = new at::Tensor(found.right);
    return kOk;
  });
}

int32_t bastion_contract(const void* left, const void* right, const void* factors, const int64_t* blocks, size_t block_count,
                         double units, double limit, int64_t* sums, size_t sum_count, int32_t fresh, int32_t lanes, int32_t* fine) {
  return guarded([&] {
    *fine = bastion::contract(tensor_at(left), tensor_at(right), tensor_at(factors), at::IntArrayRef(blocks, 2 * block_count),
                              {units, limit}, sums, sum_count, fresh != 0, lanes);
    return kOk;
  });
}

int32_t bastion_parallel(size_t tasks, void (*body)(const void*, size_t), const void* context) {
  return guarded([&] {
    at::parallel_for(0, static_cast<int64_t>(tasks), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) body(context, static_cast<size_t>(task));
    });
    return kOk;
  });
}

int32_t bastion_edge(const void* tensor, void** edge) {
  return guarded([&] {
    if (!tensor_at(tensor).requires_grad()) throw std::logic_error("tapped value needs no gradient");
    *edge = new torch::autograd::Edge(torch::autograd::impl::gradient_edge(tensor_at(tensor)));
    return kOk;
  });
}

int32_t bastion_backward_on_default_kernels(const void* tensor) {
  return guarded([&] {
    const auto& node = tensor_at(tensor).grad_fn();
    if (node == nullptr) return kOk;
    auto chosen = std::make_shared<std::string>();
    node->add_pre_hook(std::make_unique<UseDefaultKernels>(chosen));
    node->add_post_hook(std::make_unique<UseChosenKernels>(chosen));
    return kOk;
  });
}

void bastion_release_edge(void* edge) { delete static_cast<torch::autograd::Edge*>(edge); }

int32_t bastion_backward(const void* root, const void* root_gradient, void* const* edges, size_t edge_count,
                         int32_t keep_graph, void** gradients) {
  return guarded([&] {
    torch::autograd::edge_list roots{torch::autograd::impl::gradient_edge(tensor_at(root))};
    torch::autograd::edge_list outputs;
    for (size_t i = 0; i < edge_count; ++i) outputs.push_back(*static_cast<const torch::autograd::Edge*>(edges[i]));
    auto results = torch::autograd::Engine::get_default_engine().execute(
        roots, {tensor_at(root_gradient)}, /*keep_graph=*/keep_graph != 0, /*create_graph=*/false, /*accumulate_grad=*/false, outputs);
    for (size_t i = 0; i < edge_count; ++i) gradients[i] = results[i].defined() ? new at::Tensor(results[i]) : nullptr;
    return kOk;
  });
}

int32_t bastion_version(const void* tensor, uint64_t* version) {
  return guarded([&] {
    *version = tensor_at(tensor)._version();
    return kOk;
  });
}

int32_t bastion_place(const void* tensor, int32_t device, void** placed) {
  return guarded([&] {
    *placed = new at::Tensor(tensor_at(tensor).to(first_of(device)));
    return kOk;
  });
}

int32_t bastion_place_beside(const void* tensor, const void* other, void** placed) {
  return guarded([&] {
    *placed = new at::Tensor(tensor_at(tensor).to(tensor_at(other).device()));
    return kOk;
  });
}

int32_t bastion_start_cuda(uint64_t* memory_bytes, uint64_t* free_bytes) {
  return guarded([&] {
    // Read by NVIDIA's libraries when they start, which they do below: cuBLAS works in a fixed space, so that it adds in a fixed
    // order; no library computes f32 products as TF32; no compiled kernel is kept in a file.
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 1);
    setenv("NVIDIA_TF32_OVERRIDE", "0", 1);
    setenv("CUDA_CACHE_DISABLE", "1", 1);
    auto& context = at::globalContext();
    // With the reason, where hasCUDA() says no more than that there is none.
    context.lazyInitDevice(c10::kCUDA);
    if (!at::hasCUDA()) throw std::runtime_error("no device is visible");
    // f32 stays f32: what is charged for products (rule G1) knows no ten-bit mantissa.
    context.setFloat32MatmulPrecision("highest");
    context.setAllowTF32CuBLAS(false);
    context.setAllowTF32CuDNN(false);
    context.setAllowFP16ReductionCuBLAS(false);
    context.setAllowBF16ReductionCuBLAS(false);
    context.setAllowFP16AccumulationCuBLAS(false);
    // One kernel for one shape, and none that adds in the order in which threads arrive (rule T2): an operator that has no
    // other raises, in the self-test, before there is a record.
    context.setBenchmarkCuDNN(false);
    context.setDeterministicCuDNN(true);
    context.setDeterministicAlgorithms(true, /*warn_only=*/false);
    // Fused attention kernels add in any order in their backward passes; composed of products it does not.
    context.setSDPUseFlash(false);
    context.setSDPUseMemEfficient(false);
    context.setSDPUseCuDNN(false);
    context.setSDPUseMath(true);
    context.setAllowFP16BF16ReductionMathSDP(false);
    const auto [free, total] = at::getDeviceAllocator(c10::kCUDA)->getMemoryInfo(0);
    *memory_bytes = total;
    *free_bytes = free;
    return kOk;
  });
}

void bastion_last_error(char* text, size_t capacity) {
  size_t length = std::min(last_error.size(), capacity - 1);
  std::memcpy(text, last_error.data(), length);
  text[length] = 0;
  last_error.clear();
}
}
