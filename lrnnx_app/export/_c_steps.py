"""Programs around the C of a push, for steps that are no sound: they print classes, outputs, or text."""

from typing import Any

from lrnnx_app.export._c_text import quoted
from lrnnx_app.export._chunk import Chunk

STEPS = """/* Reads {form}; prints {what}. Written by lrnnx export. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "{header}"

enum {{ HOP = {NAME}_HOP, IN = {NAME}_INPUTS, ROWS = {NAME}_ROWS, OUT = {NAME}_OUTPUTS }};
{classes}
static {name}_stream stream;
static {kind} x[HOP][IN];
static float dt[HOP], y[ROWS][OUT];
static double elapsed;
{reader}{shower}
int main(int count, char **words) {{
    const char *path = count > 1 ? words[1] : "standard input";
    FILE *in = count > 1 ? fopen(path, "rb") : stdin;
    long steps = 0;
    clock_t busy = 0;
    int more = 1;
    if (count > 2 || !in) {{
        fprintf(stderr, count > 2 ? "usage: ./{name} [FILE]\\n" : "%s: cannot be read\\n", path);
        return 2;
    }}
    {name}_init(&stream);
    for (;;) {{
        clock_t began;
        for (int t = 0; t < HOP; ++t, ++steps) {{
            if ((more = step(in, t)) <= 0)
                break;
            elapsed += (double)dt[t];
        }}
        if (more <= 0)
            break;
        began = clock();
        {name}_push(&stream, x[0], {given}y[0]);
        busy += clock() - began;
        show(0);
    }}
    if (more < 0) {{
        fprintf(stderr, "%s: step %ld: expected {form}\\n", path, steps);
        return 2;
    }}
    if (steps >= HOP) {{
        show(1);
        fprintf(stderr, "%.2f us a step\\n", 1e6 * (double)busy / CLOCKS_PER_SEC / (double)steps);
    }}
    return 0;
}}
"""
# A reader is a function that reads step t. It returns 1; 0 at the end; -1 for what is no step.
LINES = """
static int step(FILE *in, int t) {{
    int found;
{dt}    for (int c = 0; c < IN; ++c)
        if ((found = fscanf(in, "%" {format}, &x[t][c])) != 1)
            return found == EOF{first} ? 0 : -1;
    return {valid};
}}
"""
DT = """    if ((found = fscanf(in, "%f", &dt[t])) != 1)
        return found == EOF ? 0 : -1;
    if (!(dt[t] >= 0 && dt[t] < HUGE_VALF))
        return -1;
"""
EVEN = """    dt[t] = 1;
"""
EVENTS = """
enum {{ MOST = 16, WIDTH = {width}, HEIGHT = {height}, POLARITIES = {polarities}, JOINED = {joined} }};

static int within(double value, int end) {{
    return value >= 0 && value < end && value == floor(value);
}}

/* The first line names the columns. Times are rounded to microseconds and count from the first event. */
static int step(FILE *in, int t) {{
    static const char names[] = "txyp";
    static int columns[MOST], many, begun;
    static double first, before;
    char line[256], *at = line, *end;
    double value[4] = {{0}}, now;
    do
        if (!fgets(line, sizeof line, in))
            return many ? 0 : -1;
        else if (!strchr(line, '\\n') && !feof(in))
            return -1; /* longer than any line of numbers */
    while (!line[strspn(line, " \\r\\n")]);
    if (!many) {{
        int known = 0;
        at += strncmp(at, "\\xef\\xbb\\xbf", 3) ? 0 : 3; /* the mark with which spreadsheets begin */
        for (at = strtok(at, ",\\r\\n"); at; at = strtok(NULL, ",\\r\\n")) {{
            const char *name = at[1] ? NULL : strchr(names, *at);
            if (many == MOST || (name && known & 1 << (name - names)))
                return -1;
            columns[many++] = name ? (int)(name - names) : -1;
            known |= name ? 1 << (name - names) : 0;
        }}
        return known == 15 ? step(in, t) : -1; /* all four */
    }}
    for (int i = 0; i < many; ++i, at = end + (*end == ',')) {{
        double number = strtod(at, &end);
        if (columns[i] >= 0 && end == at)
            return -1;
        if (columns[i] >= 0)
            value[columns[i]] = number;
        end += strcspn(end, ",");
    }}
    now = rint(value[0]);
    if (!begun)
        begun = 1, first = before = now;
    if (!(now >= before))
        return -1;
    if (!within(value[1], WIDTH) || !within(value[2], HEIGHT) || !within(value[3], POLARITIES))
        return -1;
    dt[t] = (float)((now - first) / 1000 - (before - first) / 1000); /* ms */
    before = now;
    x[t][0] = (int)value[3] * ((HEIGHT + JOINED - 1) / JOINED) + (int)value[2] / JOINED;
    x[t][0] = x[t][0] * ((WIDTH + JOINED - 1) / JOINED) + (int)value[1] / JOINED;
    return 1;
}}
"""
CLASSES = """
/* Print the likeliest class and its probability, if it has changed or is the last. */
static void show(int last) {
    static int known = -1;
    const float *now = y[ROWS - 1];
    double sum = 0;
    int best = 0;
    for (int c = 1; c < OUT; ++c)
        if (now[c] > now[best])
            best = c;
    for (int c = 0; c < OUT; ++c)
        sum += exp((double)(now[c] - now[best]));
    if (last || best != known)
        printf("%10.3f  %s  %.4f\\n", elapsed, classes[best], 1 / sum);
    known = best;
}
"""
OUTPUTS = """
static void show(int last) {
    for (int t = 0; t < ROWS && !last; ++t)
        for (int c = 0; c < OUT; ++c)
            printf("%.9g%c", (double)y[t][c], c < OUT - 1 ? ' ' : '\\n');
}
"""
TEXT = """/* Continues a text byte by byte. Written by lrnnx export. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "{header}"

enum {{ OUT = {NAME}_OUTPUTS }};

static {name}_stream stream;
static float y[OUT];
static uint64_t seed;

static void push(int byte) {{
    const int64_t x = byte;
    {name}_push(&stream, &x, y);
}}

/* A number from 0 to 1, by splitmix64 (Steele et al. 2014). */
static double drawn(void) {{
    uint64_t z = seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0;
}}

/* Whether a word is a number of at least `least`, and nothing else. */
static int number(const char *word, double least, double *value) {{
    char *end;
    *value = strtod(word, &end);
    return end != word && !*end && *value >= least && *value < 1e15;
}}

/* The likeliest byte; above a temperature of 0 one that is drawn. */
static int chosen(double temperature) {{
    double shares[OUT], sum = 0;
    int best = 0;
    for (int c = 1; c < OUT; ++c)
        if (y[c] > y[best])
            best = c;
    if (temperature == 0)
        return best;
    for (int c = 0; c < OUT; ++c)
        sum += shares[c] = exp((double)(y[c] - y[best]) / temperature);
    sum *= drawn();
    for (int c = 0; c < OUT; ++c)
        if ((sum -= shares[c]) < 0)
            return c;
    return best;
}}

int main(int count, char **words) {{
    double length = 400, temperature = 0, begin = 0, pushed = 0;
    clock_t began = clock();
    if (count < 2 || count > 5 || !*words[1] || (count > 2 && !number(words[2], 1, &length)) ||
        (count > 3 && !number(words[3], 0, &temperature)) || (count > 4 && !number(words[4], 0, &begin)) ||
        length != floor(length) || begin != floor(begin)) {{
        fputs("usage: ./{name} PROMPT [BYTES [TEMPERATURE [SEED]]]\\n", stderr);
        return 2;
    }}
    seed = (uint64_t)begin;
    {name}_init(&stream);
    fputs(words[1], stdout);
    for (const char *at = words[1]; *at; ++at, ++pushed)
        push((unsigned char)*at);
    for (; length > 0; --length, ++pushed) {{
        int byte = chosen(temperature);
        putchar(byte);
        fflush(stdout);
        push(byte);
    }}
    putchar('\\n');
    fprintf(stderr, "%.0f bytes/s\\n", pushed * CLOCKS_PER_SEC / (double)(clock() - began));
    return 0;
}}
"""


def main(chunk: Chunk, shared: dict[str, Any], pixels: tuple[int, ...] | None) -> str:
    """The text of a main.c that reads steps; `pixels` as of a DataModule."""
    spec = chunk.spec
    numbers = f"steps as numbers{', dt before each' if chunk.timed else ''}"
    tokens = f"steps below {spec.d_input}{' after their dt' if chunk.timed else ''}"
    return STEPS.format(
        **shared,
        form="a csv of events with t in us, x, y, p" if pixels else tokens if spec.tokens else numbers,
        what="the classes as they change" if spec.classes else "the outputs of each push",
        classes=quoted(spec.classes),
        kind="int64_t" if spec.tokens else "float",
        given="dt, " if chunk.timed else "",
        reader=_events(pixels) if pixels else _lines(chunk),
        shower=CLASSES if spec.classes else OUTPUTS,
    )


def _events(pixels: tuple[int, ...]) -> str:
    return EVENTS.format(**dict(zip(("width", "height", "polarities", "joined"), pixels, strict=True)))


def _lines(chunk: Chunk) -> str:
    tokens = chunk.spec.tokens
    return LINES.format(
        dt=DT if chunk.timed else EVEN,
        format="SCNd64" if tokens else '"f"',
        first=" && c == 0" if not chunk.timed else " && 0",
        valid=f"x[t][0] >= 0 && x[t][0] < {chunk.spec.d_input} ? 1 : -1" if tokens else "1",
    )
