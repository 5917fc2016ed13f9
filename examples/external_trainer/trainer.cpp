// Somebody else's trainer in C++: a small regression, grown with nothing but Esper's native library.
//
//     make -C examples/external_trainer PYTHON=../../.venv/bin/python
//     examples/external_trainer/trainer esper/ops/libesper_native.so
//
// Three branches are let into the network while it trains, two by the residual and one by the convex form, their
// alphas ramped over the first 40 of 50 steps. At some steps every gradient is compared with that of the plain torch
// expression; the program fails where they differ. torch/torch.h would serve too; these headers compile faster.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using Tensors = std::vector<Tensor>;
using Spans = std::vector<int64_t>;  // start and stop of slot 0, start and stop of slot 1, ...

constexpr int kSteps = 50, kRampSteps = 40;
constexpr int64_t kChannels = 24;
const Spans kHalves{0, 16, 8, 24}, kWhole{0, kChannels};

template <typename Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Tensor native_blend(const Tensor& host, at::TensorList seeds, const Tensor& alphas, const Spans& spans, bool convex) {
  using Signature = Tensor(const Tensor&, at::TensorList, const Tensor&, at::IntArrayRef, int64_t, bool);
  static const auto found = op<Signature>("esper_native::blend");
  return found.call(host, seeds, alphas, spans, /*channel_dim=*/1, convex);
}

Tensors native_backward(const Tensor& grad, const std::optional<Tensor>& host, at::TensorList seeds,
                        const Tensor& alphas, const Spans& spans, bool convex) {
  using Signature = Tensors(const Tensor&, const std::optional<Tensor>&, at::TensorList, const Tensor&,
                            at::IntArrayRef, int64_t, bool);
  static const auto found = op<Signature>("esper_native::blend_backward");
  return found.call(grad, host, seeds, alphas, spans, /*channel_dim=*/1, convex);
}

// The shim: without a gradient for alphas, the backward reads neither host nor seeds, and they are not kept.
struct Blend : torch::autograd::Function<Blend> {
  static Tensor forward(AutogradContext* ctx, const Tensor& host, const Tensor& alphas, at::TensorList seeds,
                        const Spans& spans, bool convex) {
    const bool sums = alphas.requires_grad();
    Tensors kept{alphas};
    if (sums && convex) kept.push_back(host);
    if (sums) kept.insert(kept.end(), seeds.begin(), seeds.end());
    ctx->save_for_backward(kept);
    ctx->saved_data["spans"] = spans;
    ctx->saved_data["convex"] = convex;
    return native_blend(host, seeds, alphas, spans, convex);
  }

  static Tensors backward(AutogradContext* ctx, Tensors grads) {
    const Tensors kept = ctx->get_saved_variables();
    const bool convex = ctx->saved_data["convex"].toBool(), sums = kept.size() > 1;
    const Tensor grad = grads[0].contiguous();  // like host and seeds here; it may come expanded
    const auto host = sums && convex ? std::optional<Tensor>(kept[1]) : std::nullopt;
    const auto seeds = at::TensorList(kept).slice(sums && convex ? 2 : 1);
    Tensors made = native_backward(grad, host, seeds, kept[0], ctx->saved_data["spans"].toIntVector(), convex);
    Tensors d{grad, Tensor()};  // of host and alphas
    if (convex) d[0] = made.front(), made.erase(made.begin());
    if (sums) d[1] = made.back(), made.pop_back();
    d.insert(d.end(), made.begin(), made.end());
    d.insert(d.end(), {Tensor(), Tensor()});  // of spans and convex
    return d;
  }
};

Tensor shim_blend(const Tensor& host, const Tensors& seeds, const Tensor& alphas, const Spans& spans, bool convex) {
  return Blend::apply(host, alphas, at::TensorList(seeds), spans, convex);
}

// What the library computes, in plain torch.
Tensor plain_blend(const Tensor& host, const Tensors& seeds, const Tensor& alphas, const Spans& spans, bool convex) {
  Tensor out = host;
  for (size_t s = 0; s < seeds.size(); ++s) {
    const int64_t start = spans[2 * s], stop = spans[2 * s + 1];
    const Tensor under = out.narrow(1, start, stop - start);
    const Tensor step = alphas.select(0, static_cast<int64_t>(s)).mul(convex ? seeds[s].sub(under) : seeds[s]);
    out = out.slice_scatter(under.add(step), 1, start, stop);
  }
  return out;
}

using BlendForm = Tensor(const Tensor&, const Tensors&, const Tensor&, const Spans&, bool);

struct Model {
  Tensor first, last, half_0, half_1, whole, gates;  // gates are learnt, so that alphas have a gradient
  Tensors all;

  Model() {
    const auto weight = [&](int64_t in, int64_t out) { return at::randn({in, out}).div_(std::sqrt(double(in))); };
    first = weight(8, kChannels), last = weight(kChannels, 1);
    half_0 = weight(8, 16), half_1 = weight(8, 16), whole = weight(kChannels, kChannels), gates = at::ones({3});
    all = {first, last, half_0, half_1, whole, gates};
    for (Tensor& t : all) t.requires_grad_();
  }

  Tensor loss(const Tensor& x, const Tensor& y, double ramp, BlendForm blend) const {
    const Tensor alphas = gates.mul(ramp);
    Tensor h = x.mm(first).tanh();  // [rows, kChannels]
    h = blend(h, {x.mm(half_0).tanh(), x.mm(half_1).tanh()}, alphas.narrow(0, 0, 2), kHalves, false);
    h = blend(h, {h.mm(whole).tanh()}, alphas.narrow(0, 2, 1), kWhole, true);
    return at::mse_loss(h.mm(last), y);
  }

  Tensors gradients(const Tensor& loss) const { return torch::autograd::grad({loss}, all); }
};

void load(const char* path) {
  if (!dlopen(path, RTLD_NOW)) throw std::runtime_error(dlerror());
}

// What the op says to a trainer without a shim.
std::string refusal() {
  try {
    native_blend(at::zeros({2, 4}).requires_grad_(), {at::zeros({2, 4})}, at::ones({1}), {0, 4}, false);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
  }
  throw std::runtime_error("blend ran in grad mode without a shim: its result has no history");
}

double compare(const Tensors& ours, const Tensors& plain) {
  double greatest = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    if (!ours[i].allclose(plain[i], 1.3e-6, 1e-5)) throw std::runtime_error("gradients are not the plain expression's");
    greatest = std::max(greatest, ours[i].sub(plain[i]).abs().max().item().toDouble());
  }
  return greatest;
}

void train() {
  at::manual_seed(0);
  const Tensor x = at::randn({256, 8});
  const Tensor y = x.select(1, 0).mul(x.select(1, 1)).add(x.select(1, 2).sin()).unsqueeze(1);
  Model model;
  for (int step = 0; step < kSteps; ++step) {
    const double ramp = std::min(1.0, double(step) / kRampSteps);
    const Tensor loss = model.loss(x, y, ramp, shim_blend);
    const Tensors gradients = model.gradients(loss);
    if (step == 0 || step == 10 || step == 30 || step == kSteps - 1) {
      const double differ = compare(gradients, model.gradients(model.loss(x, y, ramp, plain_blend)));
      std::printf("step %d: loss %.3f, ramp %.2f, gradients differ by %.1e\n", step, loss.item().toDouble(), ramp,
                  differ);
    }
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < gradients.size(); ++i) model.all[i].sub_(gradients[i], 0.05);
  }
  std::printf("%d steps\n", kSteps);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) throw std::runtime_error("usage: trainer <libesper_native.so>");
  load(argv[1]);
  std::printf("without a shim: %s\n", refusal().c_str());
  train();
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "trainer: %s\n", error.what());
  return 1;
}
