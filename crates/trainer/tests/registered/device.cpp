// A device for tests, registered with libtorch as PrivateUse1 (c10's place for devices that libtorch does not know). It computes
// what the CPU computes, in memory of its own kind, and refuses what CUDA refuses: an operator whose operands are on several
// devices, numbers without axes on the CPU excepted. Whoever reads its memory past the operators meets tensors whose device is
// not the CPU. It is what a GPU is to the engine, but for speed, for kernels of its own, and for not being there.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <stdexcept>

namespace {

constexpr auto kDevice = c10::DeviceType::PrivateUse1;

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    return {data, data, &c10::free_cpu, c10::Device(kDevice, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Memory memory;
REGISTER_ALLOCATOR(kDevice, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Device getDevice() const override { return c10::Device(kDevice, 0); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
Hooks hooks;
const bool registered = [] {
  c10::register_privateuse1_backend("registered");
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   dtype.value_or(at::kFloat), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           dtype.value_or(at::kFloat));
}

// The same memory as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& tensor) {
  if (tensor.device().is_cpu()) return tensor;
  return at::from_blob(const_cast<void*>(tensor.storage().data()), {static_cast<int64_t>(tensor.storage().nbytes())}, at::kByte)
      .view(tensor.scalar_type())
      .as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& other, bool) {
  if (other.numel() > 0) on_cpu(other).copy_(on_cpu(self));
  return other;
}

const at::Tensor& resized(const at::Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
  if (self.sizes() == size) return self;
  const auto fresh = empty(size, self.scalar_type(), std::nullopt, std::nullopt, std::nullopt, std::nullopt);
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(fresh.storage());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(fresh.sizes(), fresh.strides());
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& other) {
  return copy_from(self, resized(other, self.sizes(), std::nullopt), false);
}

at::Tensor strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset) {
  auto out = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset.value_or(self.storage_offset()));
  return out;
}

at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) {
  const auto shape = at::infer_size(size, self.numel());
  const auto stride = at::detail::computeStride(self.sizes(), self.strides(), shape);
  if (!stride.has_value()) throw std::invalid_argument("a view that needs a copy");
  return strided(self, shape, *stride, self.storage_offset());
}

at::Tensor reshape_alias(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return strided(self, size, stride, self.storage_offset());
}

at::Tensor windows(const at::Tensor& self, int64_t dimension, int64_t length, int64_t step) {
  auto size = self.sizes().vec(), stride = self.strides().vec();
  const auto axis = at::maybe_wrap_dim(dimension, self.dim());
  size[axis] = (size[axis] - length) / step + 1;
  size.push_back(length);
  stride.push_back(stride[axis]);
  stride[axis] *= step;
  return strided(self, size, stride, self.storage_offset());
}

at::Scalar item(const at::Tensor& self) { return on_cpu(self).item(); }

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(const at::Tensor& gradient, const at::Tensor& input,
                                                                    const at::Tensor& weight, c10::IntArrayRef stride,
                                                                    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                                                                    c10::IntArrayRef output_padding, int64_t groups,
                                                                    std::array<bool, 3> mask) {
  auto [of_input, of_weight, of_bias] = at::convolution_backward(on_cpu(gradient).contiguous(), on_cpu(input), on_cpu(weight),
                                                                 weight.size(transposed ? 1 : 0), stride, padding, dilation,
                                                                 transposed, output_padding, groups, mask);
  const auto placed = [&](const at::Tensor& tensor) { return tensor.defined() ? tensor.to(gradient.device()) : tensor; };
  return {placed(of_input), placed(of_weight), placed(of_bias)};
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                       c10::IntArrayRef output_padding, int64_t groups) {
  const auto own_bias = bias && bias->defined() ? std::optional<at::Tensor>(on_cpu(*bias)) : std::nullopt;
  return at::convolution(on_cpu(input), on_cpu(weight), own_bias, stride, padding, dilation, transposed, output_padding, groups)
      .to(input.device());
}

// Everything else: on the CPU, after the check that CUDA's kernels make.
void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto refuse_host = [&](const at::Tensor& tensor) {
    if (tensor.defined() && tensor.device().is_cpu() && tensor.dim() > 0)
      throw std::runtime_error("operands on several devices: " + c10::toString(op.schema()));
  };
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    const auto& value = (*stack)[i];
    if (value.isTensor()) refuse_host(value.toTensor());
    else if (value.isTensorList()) for (const at::Tensor& each : value.toTensorVector()) refuse_host(each);
    else if (value.isOptionalTensorList())
      for (const auto& each : value.toOptionalTensorVector()) if (each) refuse_host(*each);
  }
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("resize_", &resized);
  library.impl("as_strided", &strided);
  library.impl("view", &view);
  library.impl("unfold", &windows);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("_local_scalar_dense", &item);
  library.impl("convolution_overrideable", &convolution);
  library.impl("convolution_backward_overrideable", &convolution_backward);
}

}  // namespace
