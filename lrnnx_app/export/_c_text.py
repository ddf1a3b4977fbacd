"""The texts around the C of a push: header, functions of a stream, a Makefile."""

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


def quoted(classes: Sequence[str]) -> str:
    """A declaration of the names of classes, if there are any."""
    names = ", ".join(f'"{_quoted(name)}"' for name in classes)
    return f"static const char *const classes[] = {{{names}}};" if names else ""


def _quoted(word: str) -> str:
    """As it stands between quotes in C."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in word.encode())
    return "".join(plain)
