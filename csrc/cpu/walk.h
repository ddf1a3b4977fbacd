// The recurrence along time for one batch element and a block of channels, forward and backward.
//
// A Source says where coefficients and inputs come from: seek(t) goes to a step, at(i, d) gives both for a channel.
// Where TURNS, d says as a type whether a phase of the step is distant. Backward, pull(i, k, g, before, d) takes the
// gradient g of a state and the state before it, keeps the gradients of what coefficient and input were made of, and
// returns that of the state before; store(t) writes those of a step (after clear(), zeros), and finish() those summed
// over time.
//
// Batch element 1, a block of 4 channels from channel 8 on, 3 steps (a block has up to 256 channels):
//
//   forward           8   9  10  11        one thread; h stays in the level-1 cache
//   h               | .   .   .   . |      starts as h0
//   t = 0   a, b    | .   .   .   . |      h <- a·h + b, a few channels at once in vector registers; h -> out[1][0]
//   t = 1   a, b    | .   .   .   . |      h -> out[1][1]
//   t = 2   ..                             after the last step h -> last[1]
//
//   backward, t = 2, 1, 0                  c, the gradient of the state, starts as grad_last[1]
//   c, grad[1][t], states[1][t − 1]        c <- pull(c + grad, state before); the source stores gradients of step t
//                                          after step 0 c -> the gradient of h0
#pragma once
#include <algorithm>

#include "lanes.h"

namespace lrnnx::cpu {

struct Job {
  const void *states, *grad;   // backward only
  const void *first, *h0;      // what enters the walk: h0, or the gradient of the last state; h0; may be null
  const int64_t* lengths;      // may be null
  const bool* reset;           // may be null
  void *out, *last;            // states (forward only); last state or gradient of h0
  int64_t batch, time, channels;
  bool reverse, past_caches;

  int64_t length(int64_t b) const { return lengths ? std::clamp<int64_t>(lengths[b], 0, time) : time; }

  // Whether step t drops its incoming state: a packed sequence starts here, or, backwards, after it.
  bool cut(int64_t b, int64_t t) const {
    const int64_t start = reverse ? t + 1 : t;
    return reset && start < time && reset[b * time + start];
  }
};

struct Block {
  int64_t batch, first;
  int width;
};

constexpr int kAhead = 2;  // steps

// Asks for a row ahead of its use: processors do not prefetch by themselves rows of two planes, or rows taken backwards.
template <int P, class E>
INLINE void foresee(const E* row, int64_t plane, int width) {
  for (int p = 0; p < P; p++)
    for (int i = 0; i < width; i += 64 / sizeof(E)) __builtin_prefetch(row + p * plane + i);
}

template <class T>
T* at_channel(void* base, int64_t index, int64_t row, int64_t first) {
  return base ? static_cast<T*>(base) + index * row + first : nullptr;
}
template <class T>
const T* at_channel(const void* base, int64_t index, int64_t row, int64_t first) {
  return base ? static_cast<const T*>(base) + index * row + first : nullptr;
}

template <class Source>
void forward(const Job& job, Source& source, const Block& block) {
  using E = typename Source::Value;
  using S = typename Source::Sum;
  constexpr int P = Source::PLANES;
  const int64_t N = job.channels, row = P * N, T = job.time, length = job.length(block.batch);
  E* const out = at_channel<E>(job.out, block.batch * T, row, block.first);
  Lanes<S, P> h;
  h.load(at_channel<S>(job.first, block.batch, row, block.first), N, block.width);
  for (int64_t step = 0; step < T; step++) {
    const int64_t t = job.reverse ? T - 1 - step : step;
    if (t < length) {
      if (job.cut(block.batch, t)) h.clear();
      source.seek(t);
      if (P == 2 || job.reverse) source.foresee(t + (job.reverse ? -kAhead : kAhead));
      const bool distant = Source::TURNS && source.distant();
      if constexpr (Source::TURNS)
        if (distant)
          each(block.width, [&](int i, int) INLINED {
            const auto [a, b] = source.at(i, std::true_type{});
            h.put(i, a * h.get(i) + b);
          });
      if (!distant)
        each(block.width, [&](int i, int) INLINED {
          const auto [a, b] = source.at(i, std::false_type{});
          h.put(i, a * h.get(i) + b);
        });
    }
    h.store(out + t * row, N, block.width, job.past_caches);
  }
  h.store(at_channel<S>(job.last, block.batch, row, block.first), N, block.width);
}

template <class Source>
void backward(const Job& job, Source& source, const Block& block) {
  using E = typename Source::Value;
  using S = typename Source::Sum;
  constexpr int P = Source::PLANES;
  const int64_t N = job.channels, row = P * N, T = job.time, length = job.length(block.batch);
  const E* const states = at_channel<E>(job.states, block.batch * T, row, block.first);
  const E* const grads = at_channel<E>(job.grad, block.batch * T, row, block.first);
  Lanes<S, P> c, before;
  c.load(at_channel<S>(job.first, block.batch, row, block.first), N, block.width);
  for (int64_t step = T - 1; step >= 0; step--) {
    const int64_t t = job.reverse ? T - 1 - step : step;
    const E* const grad = grads + t * row;
    if (t >= length) {
      each(block.width, [&](int i, int) INLINED { c.add(i, read<S, P>(grad, N, i)); });
      source.clear();
      source.store(t);
      continue;
    }
    const bool cut = job.cut(block.batch, t);
    if (cut)
      before.clear();
    else if (step > 0)
      before.load(states + (job.reverse ? t + 1 : t - 1) * row, N, block.width);
    else
      before.load(at_channel<S>(job.h0, block.batch, row, block.first), N, block.width);
    source.seek(t);
    const int64_t ahead = job.reverse ? kAhead : -kAhead;
    source.foresee(t + ahead);
    foresee<P>(grad + ahead * row, N, block.width);
    foresee<P>(states + (t + ahead + ahead / kAhead) * row, N, block.width);
    const bool distant = Source::TURNS && source.distant();
    if constexpr (Source::TURNS)
      if (distant)
        each(block.width, [&](int i, int k) INLINED {
          c.put(i, source.pull(i, k, c.get(i) + read<S, P>(grad, N, i), before.get(i), std::true_type{}));
        });
    if (!distant)
      each(block.width, [&](int i, int k) INLINED {
        c.put(i, source.pull(i, k, c.get(i) + read<S, P>(grad, N, i), before.get(i), std::false_type{}));
      });
    source.store(t);
    if (cut) c.clear();
  }
  c.store(at_channel<S>(job.last, block.batch, row, block.first), N, block.width);
  source.finish();
}

}  // namespace lrnnx::cpu
