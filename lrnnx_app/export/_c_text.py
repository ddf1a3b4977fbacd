"""The texts around the C of a push: header, functions of a stream, a program that runs it, a Makefile."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lrnnx_app.export._c_program import Array, Program
from lrnnx_app.export._chunk import Chunk

HEADER = """/* Written by lrnnx export: a model that streams, in C99 with libm alone. */
#ifndef {NAME}_H
#define {NAME}_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{constants}

/* What a stream remembers from push to push. */
typedef struct {{
{states}
}} {name}_state;

/* A stream. Nothing is shared between streams, so each may have its own thread. */
typedef struct {{
    {name}_state states[2]; /* before a push and after it, in turns */
    int now;
{scratch}
}} {name}_stream;

/* Begin a stream. It must be called before the first push; the struct needs no other care. */
void {name}_init({name}_stream *stream);

/* Forget all that was pushed. */
void {name}_reset({name}_stream *stream);

/* Push one hop: x is [HOP][INPUTS]{dt_told}, y is [ROWS][OUTPUTS].
 * Returns 0, or 1 if a number was not finite: then y is zero and the stream has been reset. */
int {name}_push({name}_stream *stream, const {kind} *x, {dt}float *y);

/* Bytes of a stream, for other languages. */
size_t {name}_bytes(void);

#ifdef __cplusplus
}}
#endif
#endif
"""
FUNCTIONS = """
/* Make numbers zero that are so small that processors are slow with them; tell whether all are finite.
 * By bits, which -ffast-math leaves alone. */
static int {name}_settle(float *x, size_t count) {{
    int wild = 0;
    for (size_t i = 0; i < count; ++i) {{
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7f800000u;
        wild |= bits == 0x7f800000u;
        if (bits < 0x0a000000u)
            x[i] = 0.0f;
    }}
    return wild;
}}

void {name}_reset({name}_stream *stream) {{
    {name}_state *state = &stream->states[stream->now = 0];
    memset(state, 0, sizeof *state);
{initial}}}

void {name}_init({name}_stream *stream) {{
    memset(stream, 0, sizeof *stream);
    {name}_reset(stream);
}}

int {name}_push({name}_stream *stream, const {kind} *x, {dt}float *y) {{
    {name}_state *now = &stream->states[stream->now];
    {name}_state *next = &stream->states[stream->now ^= 1];
    int wild = 0;
    {name}_hop({words});
    wild |= {name}_settle(y, {count});
{settled}    if (wild) {{
        memset(y, 0, {count} * sizeof *y);
        {name}_reset(stream);
    }}
    return wild;
}}

size_t {name}_bytes(void) {{
    return sizeof({name}_stream);
}}
"""
SOUND = """/* {usage}. Written by lrnnx export. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "{header}"

enum {{ HOP = {NAME}_HOP, IN = {NAME}_INPUTS, ROWS = {NAME}_ROWS, OUT = {NAME}_OUTPUTS, MOST = 64 }};
{classes}
static {name}_stream stream;
static float x[HOP][IN], y[ROWS][OUT];
static unsigned char bytes[HOP * MOST * 2];

static int refuse(const char *path, const char *why) {{
    fprintf(stderr, "%s: %s\\n", path, why);
    return 2;
}}

static unsigned long number(const unsigned char *from, int width) {{
    unsigned long value = 0;
    while (width--)
        value = value << 8 | from[width];
    return value;
}}

/* Channels of a wav of 16-bit PCM at the model's rate, or 0; *size bytes of sound come next. */
static int opened(FILE *file, unsigned long *size) {{
    unsigned char head[12], form[26];
    int channels = 0;
    if (fread(head, 1, 12, file) != 12 || memcmp(head, "RIFF", 4) || memcmp(head + 8, "WAVE", 4))
        return 0;
    while (fread(head, 1, 8, file) == 8) {{
        unsigned long length = number(head + 4, 4), taken = 0;
        *size = length;
        if (!memcmp(head, "data", 4))
            return channels;
        if (!memcmp(head, "fmt ", 4) && length >= 16) {{
            taken = fread(form, 1, length < sizeof form ? length : sizeof form, file);
            if (number(form, 2) == 0xfffe && taken == sizeof form)
                memcpy(form, form + 24, 2);
            if (number(form, 2) != 1 || number(form + 14, 2) != 16 || number(form + 4, 4) != {NAME}_RATE)
                return 0;
            channels = (int)number(form + 2, 2);
            if (channels > MOST || (channels != IN && IN > 1))
                return 0;
        }}
        for (length += length & 1; taken < length; ++taken)
            if (getc(file) == EOF)
                return 0;
    }}
    return 0;
}}
{writer}
int main(int count, char **words) {{
    unsigned long size = 0, row;
    long heard = 0, pushed = 0;
    int channels, ended = 0;
    clock_t busy = 0;
    FILE *in{file};
    if (count != {words})
        return refuse("usage", "{usage}");
    if (!(in = fopen(words[1], "rb")))
        return refuse(words[1], "cannot be read");
    if (!(channels = opened(in, &size)))
        return refuse(words[1], "expected a wav of 16-bit PCM with {channels} at {rate} Hz");
{begin}    {name}_init(&stream);
    for (row = 2ul * (unsigned long)channels;; pushed += HOP) {{
        unsigned long wanted = size < HOP * row ? size : HOP * row;
        long got = ended ? 0 : (long)(fread(bytes, 1, wanted, in) / row);
        clock_t began;
        size -= (unsigned long)got * row;
        heard += got;
        ended |= got < HOP;
        if (ended && pushed >= heard + {NAME}_DELAY)
            break;
        memset(x, 0, sizeof x);
        for (long t = 0; t < got; ++t)
            for (int c = 0; c < channels; ++c) {{
                long value = (long)number(bytes + (t * channels + c) * 2, 2);
                float part = (float)(value < 32768 ? value : value - 65536) / 32768.0f;
                x[t][IN == channels ? c : 0] += IN == channels ? part : part / (float)channels;
            }}
        began = clock();
        {name}_push(&stream, x[0], y[0]);
        busy += clock() - began;
{write}    }}
{end}    if (pushed) {{
        double seconds = (double)busy / CLOCKS_PER_SEC, hops = (double)(pushed / HOP);
        fprintf(stderr, "%.3f ms a push, real-time factor %.4f\\n", 1000 * seconds / hops,
                seconds * {NAME}_RATE / HOP / hops);
    }}
    return 0;
}}
"""
WRITER = """
static void put(FILE *file, unsigned long value, int width) {
    for (; width--; value >>= 8)
        putc((int)(value & 255), file);
}

static void header(FILE *file, unsigned long size) {
    fputs("RIFF", file), put(file, 36 + size, 4), fputs("WAVEfmt ", file);
    put(file, 16, 4), put(file, 1, 2), put(file, OUT, 2), put(file, RATE, 4);
    put(file, RATE * OUT * 2, 4), put(file, OUT * 2, 2), put(file, 16, 2);
    fputs("data", file), put(file, size, 4);
}
"""
OPEN = """    if (!(out = fopen(words[2], "wb")))
        return refuse(words[2], "cannot be written");
    header(out, 0);
"""
WRITE = """        for (int t = 0; t < ROWS; ++t)
            if (pushed + t >= DELAY && pushed + t < heard + DELAY)
                for (int c = 0; c < OUT; ++c) {
                    float loud = fmaxf(-32768.0f, fminf(32767.0f, y[t][c] * 32768.0f));
                    put(out, (unsigned long)lrintf(loud) & 0xffff, 2);
                }
"""
CLOSE = """    rewind(out);
    header(out, (unsigned long)heard * OUT * 2);
    if (ferror(out) | fclose(out))
        return refuse(words[2], "cannot be written");
"""
CHOOSE = """    if (pushed) {
        int best = 0;
        for (int c = 1; c < OUT; ++c)
            if (y[ROWS - 1][c] > y[ROWS - 1][best])
                best = c;
        puts(classes[best]);
    }
"""
NUMBERS = """/* Reads samples as numbers, {order}, and prints the outputs of each push. */
#include <inttypes.h>
#include <stdio.h>

#include "{header}"

enum {{ HOP = {NAME}_HOP, IN = {NAME}_INPUTS, ROWS = {NAME}_ROWS, OUT = {NAME}_OUTPUTS }};

static {name}_stream stream;
static {kind} x[HOP][IN];
static float {dt}y[ROWS][OUT];

int main(void) {{
    {name}_init(&stream);
    for (;;) {{
        for (int t = 0; t < HOP; ++t) {{
{read}            for (int c = 0; c < IN; ++c)
                if (scanf("%" {format}, &x[t][c]) != 1)
                    return 0;
        }}
        {name}_push(&stream, x[0], {given}y[0]);
        for (int t = 0; t < ROWS; ++t)
            for (int c = 0; c < OUT; ++c)
                printf("%.9g%c", (double)y[t][c], c < OUT - 1 ? ' ' : '\\n');
    }}
}}
"""
DT = """            if (scanf("%f", &dt[t]) != 1)
                return 0;
"""
MAKEFILE = """CFLAGS = -std=c99 -O3 -Wall -Wextra

{name}: {file}.o main.o
	$(CC) $(CFLAGS) $^ -lm -o $@

{file}.o main.o: {file}.h

clean:
	rm -f {name} {file}.o main.o

.PHONY: clean
"""


def header(name: str, chunk: Chunk, program: Program) -> str:
    constants = {
        "RATE": (chunk.spec.sample_rate, "samples a second; 0: not evenly spaced"),
        "HOP": (chunk.chunk, "samples of a push"),
        "INPUTS": (prod(program.x.shape[2:]), "numbers of a sample"),
        "ROWS": (prod(program.y.shape[1:-1]), "outputs of a push"),
        "OUTPUTS": (program.y.shape[-1], "numbers of an output"),
        "POOLED": (int(len(program.y.shape) == 2), "1: an output is of all samples so far"),
        "DELAY": (chunk.delay, "samples by which the output is late"),
    }
    return HEADER.format(
        name=name,
        NAME=name.upper(),
        constants="\n".join(
            f"#define {name.upper()}_{key} {value} /* {told} */" for key, (value, told) in constants.items()
        ),
        states=_members(program.states),
        scratch=_members(program.scratch),
        kind=program.x.kind,
        **_timed(chunk),
    )


def functions(name: str, chunk: Chunk, program: Program) -> str:
    """What follows the C of a push: its callers."""
    both = dict(zip(program.states, chunk.states, strict=True))
    pointers = [program.x.cast("x"), *([f"(const float (*)[{chunk.chunk}])dt"] if chunk.timed else [])]
    given = [
        *(f"now->{array.name}" for array in both),
        program.y.cast("y"),
        *(f"next->{array.name}" for array in both),
    ]
    return FUNCTIONS.format(
        name=name,
        kind=program.x.kind,
        count=prod(program.y.shape),
        words=", ".join(["stream", *pointers, *given]),
        initial="".join(_initial(array, state.initial) for array, state in both.items()),
        settled="".join(
            f"    wild |= {name}_settle((float *)next->{array.name}, {prod(array.shape)});\n"
            for array in both
            if array.kind == "float"
        ),
        **_timed(chunk),
    )


def main(name: str, path: Path, chunk: Chunk) -> str:
    spec, NAME = chunk.spec, name.upper()
    shared = {"name": name, "NAME": NAME, "header": path.with_suffix(".h").name}
    if not spec.sample_rate or spec.tokens or chunk.timed:
        return NUMBERS.format(
            **shared,
            order="dt before each" if chunk.timed else "one after the other",
            kind="int64_t" if spec.tokens else "float",
            format="SCNd64" if spec.tokens else '"f"',
            read=DT if chunk.timed else "",
            dt="dt[HOP], " if chunk.timed else "",
            given="dt, " if chunk.timed else "",
        )
    classes = ", ".join(f'"{_quoted(each)}"' for each in spec.classes)
    text = {
        "writer": "" if classes else WRITER,
        "begin": "" if classes else OPEN,
        "write": "" if classes else WRITE,
        "end": CHOOSE if classes else CLOSE,
    }
    return SOUND.format(
        **shared,
        **{k: v.replace("RATE", f"{NAME}_RATE").replace("DELAY", f"{NAME}_DELAY") for k, v in text.items()},
        usage=f"./{name} in.wav" + ("" if classes else " out.wav"),
        words=2 if classes else 3,
        file="" if classes else ", *out",
        classes=f"static const char *const classes[] = {{{classes}}};" if classes else "",
        channels="any channels" if spec.d_input == 1 else f"{spec.d_input} channels",
        rate=spec.sample_rate,
    )


def makefile(name: str, path: Path) -> str:
    return MAKEFILE.format(name=name, file=path.stem)


def _members(arrays: Sequence[Array]) -> str:
    return "\n".join(f"    {a.kind} {a.name}{''.join(f'[{n}]' for n in a.shape)};" for a in arrays)


def _timed(chunk: Chunk) -> dict[str, str]:
    told = ", dt is the time since the sample before for each" if chunk.timed else ""
    return {"dt": "const float *dt, " if chunk.timed else "", "dt_told": told}


def _initial(array: Array, value: Any) -> str:
    """Statements that fill a state with its initial value; zero is there already."""
    count, memory = prod(array.shape), f"(({array.kind} *)state->{array.name})"
    if isinstance(value, list):
        numbers = ", ".join(map(_number, np.ravel(value).tolist()))
        return (
            f"    static const {array.kind} {array.name}[{count}] = {{{numbers}}};\n"
            f"    memcpy(state->{array.name}, {array.name}, sizeof {array.name});\n"
        )
    return (
        f"    for (size_t i = 0; i < {count}; ++i)\n        {memory}[i] = {_number(value)};\n"
        if value
        else ""
    )


def _number(value: float) -> str:
    return f"{value!r}f" if isinstance(value, float) else str(value)


def _quoted(word: str) -> str:
    """As it stands between quotes in C."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in word.encode())
    return "".join(plain)
