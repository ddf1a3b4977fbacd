/* Samples of the host gather to a hop at the model's rate; the hop's outputs leave at the host's rate.
 * Every output is `size - 1` samples late, whatever the sizes of the host's blocks. */
#include "plugin.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "facts.h"
#include "model.h"

enum { HOP = MODEL_HOP, FASTEST = 1000000 };
static const double FADE = 0.01; /* seconds in which the mix goes from one end to the other */

/* Converts a rate. Output n lies at input n * from / to, and is a sum of the inputs around it. */
typedef struct {
    long from, to;  /* rates without their common factor */
    long reach;     /* inputs after an output's place that it needs */
    long taps;      /* inputs that it needs in all */
    float *weights; /* [to][taps], by the fraction of the place */
    float *past;    /* the last inputs, twice in a row, so that the oldest of them begins a row of all */
    long oldest;    /* its place */
    long fraction;  /* by how much the next output lies behind an input, in parts of 1 / to */
    long wait;      /* inputs until the next output is complete */
} converter;

typedef struct {
    model_stream model;
    converter in, out;
    float x[HOP], y[HOP];
    int filled;           /* samples of x */
    long early;           /* outputs that the model still gives before the one of the first input */
    float *dry, *wet;     /* rings of the latest inputs, and of outputs until they are due */
    long size, now, made; /* samples of a ring, and the places of the input and of the next output */
    float gain, step;     /* share of the model's output, and its largest change at a sample */
    float *ports[PORTS];
} channel;

static int prepare(converter *c, long from, long to) {
    const double pi = acos(-1.0), scale = CUTOFF * (from < to ? 1.0 : (double)to / (double)from);
    c->from = from, c->to = to;
    c->reach = from == to ? 0 : (long)ceil(CROSSINGS / scale);
    c->taps = from == to ? 1 : 2 * c->reach;
    c->weights = malloc((size_t)(to * c->taps) * sizeof(float));
    c->past = malloc((size_t)(2 * c->taps) * sizeof(float));
    if (!c->weights || !c->past)
        return 0;
    for (long i = 0; i < to * c->taps; ++i) {
        double place = (double)(i % c->taps + 1 - c->reach) - (double)(i / c->taps) / (double)to;
        double t = fmin(CROSSINGS, fmax(-CROSSINGS, place * scale)), window = cos(t * pi / CROSSINGS / 2);
        double sinc = fabs(t) < 1e-9 ? 1.0 : sin(pi * t) / (pi * t);
        c->weights[i] = from == to ? 1.0f : (float)(scale * sinc * window * window);
    }
    return 1;
}

static void forget(converter *c) {
    memset(c->past, 0, (size_t)(2 * c->taps) * sizeof(float));
    c->oldest = c->fraction = 0;
    c->wait = c->reach + 1;
}

static void give(converter *c, float x) {
    c->past[c->oldest] = c->past[c->oldest + c->taps] = x;
    c->oldest = c->oldest + 1 == c->taps ? 0 : c->oldest + 1;
    --c->wait;
}

/* Whether another output is complete; it is written to *y. */
static int take(converter *c, float *y) {
    const float *weights = c->weights + c->fraction * c->taps, *past = c->past + c->oldest;
    float sum = 0.0f;
    if (c->wait > 0)
        return 0;
    for (long i = 0; i < c->taps; ++i)
        sum += weights[i] * past[i];
    *y = sum;
    c->fraction += c->from;
    c->wait += c->fraction / c->to;
    c->fraction %= c->to;
    return 1;
}

/* x, but 0 if it is not finite, or so small that processors are slow with it.
 * By bits, which -ffast-math leaves alone. */
static float tame(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= 0x7f800000u;
    return bits == 0x7f800000u || bits < 0x0a000000u ? 0.0f : x;
}

static long after(const channel *c, long place) {
    return place + 1 == c->size ? 0 : place + 1;
}

void plugin_free(void *plugin) {
    channel *c = plugin;
    free(c->in.weights), free(c->in.past);
    free(c->out.weights), free(c->out.past);
    free(c->dry), free(c->wet);
    free(c);
}

void *plugin_new(double rate) {
    channel *c;
    long common = MODEL_RATE, whole, host, model;
    if (!(rate >= 1.0 && rate <= FASTEST) || !(c = calloc(1, sizeof *c)))
        return NULL;
    whole = (long)(rate + 0.5);
    for (long rest = whole; rest;) {
        long next = common % rest;
        common = rest, rest = next;
    }
    host = whole / common, model = MODEL_RATE / common;
    if (prepare(&c->in, host, model) && prepare(&c->out, model, host)) {
        /* An output waits for the model's outputs `reach` after its place, which are DELAY late. The last of
         * them begins a hop at worst, which waits for HOP - 1 more, and these for `reach` of the host. */
        int64_t late = (int64_t)(c->out.reach + MODEL_DELAY + HOP - 1) * host / model + c->in.reach;
        c->size = (long)late + 1;
        c->step = (float)(1.0 / (FADE * rate));
        c->dry = malloc((size_t)c->size * sizeof(float));
        c->wet = malloc((size_t)c->size * sizeof(float));
        if (c->dry && c->wet) {
            plugin_reset(c);
            return c;
        }
    }
    plugin_free(c);
    return NULL;
}

void plugin_connect(void *plugin, unsigned long port, float *numbers) {
    if (port < PORTS)
        ((channel *)plugin)->ports[port] = numbers;
}

float plugin_control(const void *plugin, unsigned long port) {
    return tame(*((const channel *)plugin)->ports[port]);
}

void plugin_reset(void *plugin) {
    channel *c = plugin;
    model_init(&c->model);
    forget(&c->in), forget(&c->out);
    memset(c->dry, 0, (size_t)c->size * sizeof(float));
    memset(c->wet, 0, (size_t)c->size * sizeof(float));
    c->filled = 0, c->now = c->made = 0;
    c->early = MODEL_DELAY;
    c->gain = -1.0f; /* the first run has its mix at once */
}

static void push(channel *c) {
    model_push(&c->model, c->x, c->y);
    c->filled = 0;
    for (int i = 0; i < HOP; ++i) {
        if (c->early) {
            --c->early;
            continue;
        }
        give(&c->out, c->y[i]);
        while (take(&c->out, &c->wet[c->made]))
            c->made = after(c, c->made);
    }
}

void plugin_run(void *plugin, unsigned long count, int heard) {
    channel *c = plugin;
    float mix = heard ? fminf(1.0f, fmaxf(0.0f, plugin_control(c, MIX))) : 0.0f;
    if (c->gain < 0.0f)
        c->gain = mix;
    *c->ports[LATENCY] = (float)(c->size - 1);
    for (unsigned long i = 0; i < count; ++i) {
        float x = tame(c->ports[INPUT][i]), dry, wet;
        c->dry[c->now] = x;
        give(&c->in, fminf(LOUDEST, fmaxf(-LOUDEST, x)));
        while (take(&c->in, &c->x[c->filled]))
            if (++c->filled == HOP)
                push(c);
        c->now = after(c, c->now);
        c->gain += fminf(c->step, fmaxf(-c->step, mix - c->gain));
        dry = c->dry[c->now], wet = c->wet[c->now];
        c->ports[OUTPUT][i] = c->gain <= 0.0f ? dry : c->gain >= 1.0f ? wet : dry + c->gain * (wet - dry);
    }
}
