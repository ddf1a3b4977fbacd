// The RG-LRU's coefficients and drive, made from the logits of its gates as `rglru_scan` defines. One e = a - 1 serves
// for both, as 1 - a^2 = -e (2 + e) without cancellation.
#pragma once
#include "source.cuh"

namespace lrnnx::cuda {

template <class S, int PL, int V, bool BWD>
struct Gates {
  static constexpr int EXTRA = BWD ? 3 : 2, OUT = 2 * BWD;  // gate, input gate and, backward, u
  static constexpr bool STRIDED = false, CONSTANT = false, TIMED = true, KEEP_A = !BWD, KEEP_X = !BWD, UNITS = true;
  static_assert(PL == 1);
  using X = Val<S, PL, V>;
  using In = Inputs<S, X, EXTRA>;
  static constexpr S SLOPE = 1000;  // the steepest derivative of the square root
  X rate;

  DEVICE void init(const Params& p, int n) { rate = channel_values<S, PL, V>(p.a, n, p.N); }
  DEVICE bool far(const In&) const { return false; }
  template <bool>
  DEVICE X at(In& in) const {
    X a;
    UNROLL for (int i = 0; i < V; i++) {
      const S open = sigmoid(in.raw[0].v[0][i]), less_one = decay_minus_1(-rate.v[0][i] * open * in.dt);
      in.made[0].v[0][i] = BWD ? less_one : multiplier(less_one, in.mode) * sigmoid(in.raw[1].v[0][i]);
      in.made[1].v[0][i] = open;
      a.v[0][i] = 1 + less_one;
    }
    return a;
  }
  DEVICE X drive(const In& in, const X&, const X& u) const {
    X r;
    UNROLL for (int i = 0; i < V; i++)
      r.v[0][i] = in.made[0].v[0][i] * u.v[0][i];
    return r;
  }
  DEVICE X backward(const In& in, const X& a, const X& g, const X&, const X& h, X* da, X& sum, S& along) const {
    X du;
    along = 0;
    UNROLL for (int i = 0; i < V; i++) {
      const S r = in.made[1].v[0][i], open = sigmoid(in.raw[1].v[0][i]), u = in.raw[EXTRA - 1].v[0][i];
      const S c = g.v[0][i], a_ = a.v[0][i], m = multiplier(in.made[0].v[0][i], in.mode);
      const S bend = in.mode & kUnit ? S(0) : -a_ * a_ * reciprocal(max(m, S(0.5) / SLOPE));  // of the root along log a
      const S of_log = c * fma(a_, h.v[0][i], bend * open * u), of_span = -of_log * r, of_rate = of_span * in.dt;
      sum.v[0][i] += of_rate;
      along = fma(of_span, rate.v[0][i], along);
      da[0].v[0][i] = of_rate * rate.v[0][i] * (1 - r);
      du.v[0][i] = c * m * open;
      da[1].v[0][i] = du.v[0][i] * u * (1 - open);
    }
    return du;
  }

 private:
  DEVICE static S multiplier(S e, int mode) {
    const S root = square_root(-e * (2 + e));
    return mode & kUnit ? S(1) : root;
  }
};

}  // namespace lrnnx::cuda
