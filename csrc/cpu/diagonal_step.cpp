// lrnnx::diagonal_step on the CPU. Lanes are the states of a group, or groups where each has one state.
//
//   N = 40 states     a task is one (b, g)     lanes 0 .. 31: states 0 .. 31, then lanes 0 .. 7: states 32 .. 39
//                                              read: Re(c·after) of all lanes, added at the end -> one w[b][g]
//   N = 1, G = 40     a task is one b          lanes 0 .. 31: groups 0 .. 31, then lanes 0 .. 7: groups 32 .. 39
//                                              read: each lane gives its own w[b][g]
//
//   on the stack      h, a, gain, x, c: 32 numbers for each plane; step, elapsed: 32 numbers     after -> memory
#include "rules.h"
#include "run.h"

namespace lrnnx::cpu {
namespace {

constexpr int kLanes = 32;

enum Axes { kAll, kNoPlanes, kGroups };  // (B, G, P, n), (B, G, n) or (B, G), of which the first may be missing

struct Operand {  // broadcasts to (B, G, P, n): strides of 0
  void* data = nullptr;
  int64_t batch = 0, group = 0, plane = 0, state = 0;

  Operand() = default;
  Operand(const Tensor& x, Axes axes = kAll) : data(x.data_ptr()) {
    std::vector<int64_t*> strides{&batch, &group, &plane, &state};
    if (axes != kAll) strides.erase(strides.begin() + 2);
    if (axes == kGroups) strides.pop_back();
    const int64_t missing = static_cast<int64_t>(strides.size()) - x.dim();
    for (int64_t d = 0; d < x.dim(); d++)
      if (x.size(d) > 1) *strides[d + missing] = x.stride(d);
  }
  Operand(const Optional& x, Axes axes = kAll) {
    if (x) *this = Operand(*x, axes);
  }
};

struct Step {
  Operand v, h, a, gain, c, direct, step, dt, gate, after, w;
  int64_t batch, groups, states;
  bool softplus, shared_input;
};

// Lanes of one operand from a batch element, group and state on, along groups or states.
template <class S>
struct Lane {
  int64_t b, g, n;
  bool along_groups;
  int width;

  S* at(const Operand& x, int plane = 0) const {
    return static_cast<S*>(x.data) + b * x.batch + g * x.group + plane * x.plane + n * x.state;
  }
  int64_t stride(const Operand& x) const { return along_groups ? x.group : x.state; }

  void load(const Operand& x, S (&to)[kLanes], int plane = 0) const {
    const S* const from = at(x, plane);
    const int64_t apart = stride(x);
    for (int i = 0; i < width; i++) to[i] = from[i * apart];
  }
  void store(const Operand& x, const S (&from)[kLanes], int plane = 0) const {
    S* const to = at(x, plane);
    const int64_t apart = stride(x);
    for (int i = 0; i < width; i++) to[i * apart] = from[i];
  }
};

template <class S, int P, int RULE>
void advance(const Step& p, int64_t b, int64_t g, bool along_groups) {
  const int64_t count = along_groups ? p.groups : p.states;
  alignas(64) S read[kLanes] = {};  // Re c∘h of the lanes, summed over blocks of them unless lanes are groups
  const auto finish = [&](const Lane<S>& lane, S (&sum)[kLanes]) {
    alignas(64) S x[kLanes] = {};
    if (p.direct.data) {
      alignas(64) S direct[kLanes] = {};
      lane.load(p.v, x);
      lane.load(p.direct, direct);
      for (int i = 0; i < lane.width; i++) sum[i] = fused(direct[i], x[i], sum[i]);
    }
    if (p.gate.data) {
      lane.load(p.gate, x);
      for (int i = 0; i < lane.width; i++) sum[i] *= x[i] * sigmoid(x[i]);
    }
    lane.store(p.w, sum);
  };
  for (int64_t first = 0; first < count; first += kLanes) {
    const int width = static_cast<int>(std::min<int64_t>(kLanes, count - first));
    const Lane<S> lane{b, along_groups ? first : g, along_groups ? 0 : first, along_groups, width};
    alignas(64) S h[P][kLanes] = {}, a[P][kLanes] = {}, gain[P][kLanes] = {}, x[P][kLanes] = {}, c[P][kLanes] = {};
    alignas(64) S step[kLanes] = {}, elapsed[kLanes] = {};
    for (int plane = 0; plane < P; plane++) {
      lane.load(p.h, h[plane], plane);
      lane.load(p.a, a[plane], plane);
      if (!p.shared_input || plane == 0) lane.load(p.v, x[plane], plane);
      if (p.gain.data) lane.load(p.gain, gain[plane], plane);
      if (p.c.data) lane.load(p.c, c[plane], plane);
    }
    const S nothing = p.gain.data ? S(0) : S(1);
    if constexpr (RULE != kGiven) {
      std::fill(step, step + kLanes, S(1));
      std::fill(elapsed, elapsed + kLanes, S(1));
      if (p.step.data) lane.load(p.step, step);
      if (p.dt.data) lane.load(p.dt, elapsed);
      if (p.softplus) {
        INDEPENDENT
        for (int i = 0; i < kLanes; i++) step[i] = softplus(step[i]);
      }
    }
    constexpr bool turns = [] {
      if constexpr (RULE != kGiven) return kTurns<P, RULE>;
      return false;
    }();
    int near = 1;
    if constexpr (turns)
      for (int i = 0; i < kLanes; i++)
        near &= !distant(a[1][i] * step[i] * std::max(S(1), std::abs(elapsed[i])));
    by_distance<turns>(!near, [&](auto distant) INLINED {
      INDEPENDENT
      for (int i = 0; i < kLanes; i++) {
        const Number<S, P> rate = number<P>(a[0][i], a[P - 1][i]);
        const Number<S, P> factor = number<P>(gain[0][i] + nothing, gain[P - 1][i]);
        Number<S, P> drive = factor * number<P>(x[0][i], x[P - 1][i]);
        Number<S, P> coefficient = number<P>(rate.re(), rate.im());
        if constexpr (RULE != kGiven) {
          const Made<S, P, RULE, decltype(distant)::value> made(rate, step[i] * elapsed[i], step[i]);
          coefficient = number<P>(made.a.re(), made.a.im());
          drive = made.drive(drive);
        }
        const Number<S, P> after = coefficient * number<P>(h[0][i], h[P - 1][i]) + drive;
        h[0][i] = after.re();
        if constexpr (P == 2) h[1][i] = after.im();
        read[i] = (along_groups ? S(0) : read[i]) + c[0][i] * after.re();
        if constexpr (P == 2) read[i] -= c[1][i] * after.im();
      }
    });
    for (int plane = 0; plane < P; plane++) lane.store(p.after, h[plane], plane);
    if (along_groups && p.c.data) finish(lane, read);
  }
  if (along_groups || !p.c.data) return;
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) read[i] += read[i + half];
  finish(Lane<S>{b, g, 0, true, 1}, read);
}

template <class S, int P, int RULE>
void spread(const Step& p) {
  const bool along_groups = p.states == 1;
  const int64_t rows = along_groups ? 1 : p.groups;
  const int64_t grain = kWorthThread / 4 / (along_groups ? p.groups : p.states) + 1;
  torch::stable::parallel_for(0, p.batch * rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) advance<S, P, RULE>(p, task / rows, task % rows, along_groups);
  });
}

template <class S, int P>
void spread(const Step& p, int64_t rule) {
  if (rule == kGiven) return spread<S, P, kGiven>(p);
  by_rule(rule, [&](auto kind) { spread<S, P, decltype(kind)::value>(p); });
}

}  // namespace

std::tuple<Tensor, Tensor> diagonal_step(
    Tensor v, Tensor h, Tensor a, Optional gain, Optional c, Optional direct, Optional step, Optional dt, Optional gate,
    int64_t rule, bool softplus) {
  const ScalarType dtype = v.scalar_type(), wide = h.scalar_type();
  STD_TORCH_CHECK(wide == state_dtype(dtype), "v and h have dtypes that do not go together");
  expect_step(v, h, a, gain, c, direct, step, dt, gate);
  v = as(v, wide);
  a = as(a, wide);
  gain = as(gain, wide);
  c = as(c, wide);
  direct = as(direct, wide);
  step = as(step, wide);
  dt = as(dt, wide);
  gate = as(gate, wide);
  Tensor after = torch::stable::empty_like(h);
  Tensor w = torch::stable::new_empty(v, c ? std::vector<int64_t>{h.size(0), h.size(1)} : std::vector<int64_t>{0}, wide);
  const bool shared_input = v.dim() == 2;
  Step p{Operand(v, shared_input ? kGroups : kAll), Operand(h), Operand(a), Operand(gain), Operand(c),
         Operand(direct, kGroups), Operand(step, kNoPlanes), Operand(), Operand(gate, kGroups), Operand(after), Operand()};
  if (dt) {
    p.dt.data = dt->data_ptr();
    p.dt.batch = dt->size(0) > 1 ? dt->stride(0) : 0;
  }
  if (c) p.w = Operand(w, kGroups);
  p.batch = h.size(0);
  p.groups = h.size(1);
  p.states = h.size(3);
  p.softplus = softplus;
  p.shared_input = shared_input;
  const int64_t planes = h.size(2);
  by_wide_dtype(wide, [&](auto s) {
    using S = decltype(s);
    if (h.numel() == 0) return;
    planes == 1 ? spread<S, 1>(p, rule) : spread<S, 2>(p, rule);
  });
  return {as(w, dtype), after};
}

}  // namespace lrnnx::cpu

STABLE_TORCH_LIBRARY_IMPL(lrnnx, CPU, m) {
  m.impl("diagonal_step", TORCH_BOX(&lrnnx::cpu::diagonal_step));
}
