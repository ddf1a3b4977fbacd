// The recurrence along time for one batch element and a block of channels, which the compiler vectorizes.
#pragma once
#include <cstdint>

namespace lrnnx::cpu {

constexpr int kBlock = 64;  // channels of a task at most: a few cache lines a row

struct Job {
  const void *a, *b, *states;       // b: drive, or gradient of the states
  const void *h0, *last_grad;       // state before the first step; gradient of the last state; may be null
  const int64_t* lengths;           // may be null
  const bool* reset;                // may be null
  void *out, *last, *da;            // states or db; last state or dh0; da, or its sums over time (B, P, N)
  int64_t time, channels;
  int64_t a_batch, a_time;          // strides of a, 0 where it broadcasts
  bool reverse, sum_a;

  int64_t length(int64_t batch) const { return lengths ? lengths[batch] : time; }

  // Whether step t drops its incoming state: a packed sequence starts here, or, backwards, after it.
  bool cut(int64_t batch, int64_t t) const {
    const int64_t start = reverse ? t + 1 : t;
    return reset && start < time && reset[batch * time + start];
  }
};

// A block of channels: W of them when known to the compiler, else `width`.
template <class S, int P, int W>
struct Lanes {
  S value[P][kBlock] = {};

  template <class E>
  void load(const E* from, int64_t plane, int width) {
    for (int p = 0; p < P; p++)
      for (int i = 0; i < (W ? W : width); i++) value[p][i] = from ? static_cast<S>(from[p * plane + i]) : S(0);
  }
  template <class E>
  void store(E* to, int64_t plane, int width) const {
    for (int p = 0; p < P; p++)
      for (int i = 0; i < (W ? W : width); i++) to[p * plane + i] = static_cast<E>(value[p][i]);
  }
};

template <class A, class E, class S, int P, int W>
void forward(const Job& job, int64_t batch, int64_t first, int width) {
  const int64_t N = job.channels, row = P * N, T = job.time, length = job.length(batch);
  const int count = W ? W : width;
  const A* a_base = static_cast<const A*>(job.a) + batch * job.a_batch + first;
  const E* b_base = static_cast<const E*>(job.b) + batch * T * row + first;
  E* out_base = static_cast<E*>(job.out) + batch * T * row + first;
  Lanes<S, P, W> h;
  h.load(job.h0 ? static_cast<const S*>(job.h0) + batch * row + first : nullptr, N, width);
  for (int64_t step = 0; step < T; step++) {
    const int64_t t = job.reverse ? T - 1 - step : step;
    if (t < length) {
      const A* a = a_base + t * job.a_time;
      const E* b = b_base + t * row;
      if (job.cut(batch, t)) {
        h.load(b, N, width);
      } else if constexpr (P == 1) {
        for (int i = 0; i < count; i++) h.value[0][i] = S(a[i]) * h.value[0][i] + S(b[i]);
      } else {
        for (int i = 0; i < count; i++) {
          const S ar = a[i], ai = a[N + i], hr = h.value[0][i], hi = h.value[1][i];
          h.value[0][i] = ar * hr - ai * hi + S(b[i]);
          h.value[1][i] = ar * hi + ai * hr + S(b[N + i]);
        }
      }
    }
    h.store(out_base + t * row, N, width);
  }
  h.store(static_cast<S*>(job.last) + batch * row + first, N, width);
}

// c[t] = conj(a[t])·(grad[t] + c[t+1]), against the direction of the forward scan; the bracket is db.
template <class A, class E, class S, int P, int W>
void backward(const Job& job, int64_t batch, int64_t first, int width) {
  const int64_t N = job.channels, row = P * N, T = job.time, length = job.length(batch);
  const int count = W ? W : width;
  const A* a_base = static_cast<const A*>(job.a) + batch * job.a_batch + first;
  const E* grad_base = static_cast<const E*>(job.b) + batch * T * row + first;
  const E* states_base = static_cast<const E*>(job.states) + batch * T * row + first;
  E* db_base = static_cast<E*>(job.out) + batch * T * row + first;
  A* da_base = static_cast<A*>(job.da) + batch * T * row + first;
  Lanes<S, P, W> c, before, sum;
  const Lanes<S, P, W> zero;
  c.load(job.last_grad ? static_cast<const S*>(job.last_grad) + batch * row + first : nullptr, N, width);
  for (int64_t step = T - 1; step >= 0; step--) {
    const int64_t t = job.reverse ? T - 1 - step : step;
    const E* grad = grad_base + t * row;
    for (int p = 0; p < P; p++)
      for (int i = 0; i < count; i++) c.value[p][i] += S(grad[p * N + i]);
    const bool held = t >= length, cut = job.cut(batch, t);
    (held ? zero : c).store(db_base + t * row, N, width);
    if (held || cut) {
      if (!job.sum_a) zero.store(da_base + t * row, N, width);
      if (!held) c = zero;
      continue;
    }
    if (step > 0)
      before.load(states_base + (job.reverse ? t + 1 : t - 1) * row, N, width);
    else
      before.load(job.h0 ? static_cast<const S*>(job.h0) + batch * row + first : nullptr, N, width);
    const A* a = a_base + t * job.a_time;
    A* da = da_base + t * row;
    for (int i = 0; i < count; i++) {
      const S gr = c.value[0][i], hr = before.value[0][i], ar = a[i];
      S dr = gr * hr;
      c.value[0][i] = ar * gr;
      if constexpr (P == 2) {
        const S gi = c.value[1][i], hi = before.value[1][i], ai = a[N + i];
        dr += gi * hi;
        before.value[1][i] = gi * hr - gr * hi;
        c.value[0][i] += ai * gi;
        c.value[1][i] = ar * gi - ai * gr;
      }
      before.value[0][i] = dr;
    }
    if (!job.sum_a) {
      before.store(da, N, width);
    } else {
      for (int p = 0; p < P; p++)
        for (int i = 0; i < count; i++) sum.value[p][i] += before.value[p][i];
    }
  }
  c.store(static_cast<S*>(job.last) + batch * row + first, N, width);
  if (job.sum_a) sum.store(static_cast<S*>(job.da) + batch * row + first, N, width);
}

}  // namespace lrnnx::cpu
