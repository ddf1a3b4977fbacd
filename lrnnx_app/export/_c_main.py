"""The program beside the C of a push: for sound, or by what `lrnnx infer` does with a run of the task."""

from pathlib import Path

from lrnnx_app.export import _c_steps
from lrnnx_app.export._c_text import quoted
from lrnnx_app.export._chunk import Chunk

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


def main(name: str, path: Path, chunk: Chunk, inference: str, pixels: tuple[int, ...] | None) -> str:
    """The text of main.c; `inference` as of a Task, `pixels` as of a DataModule."""
    spec = chunk.spec
    shared = {"name": name, "NAME": name.upper(), "header": path.with_suffix(".h").name}
    if spec.sample_rate and not spec.tokens and not chunk.timed:
        return _sound(chunk, shared)
    bytes_alone = spec.tokens and spec.d_output == 256
    if inference == "errors" and bytes_alone and chunk.chunk == 1 and not chunk.timed:
        return _c_steps.TEXT.format(**shared)
    return _c_steps.main(chunk, shared, pixels)


def _sound(chunk: Chunk, shared: dict[str, str]) -> str:
    spec, name, NAME = chunk.spec, shared["name"], shared["NAME"]
    classes = spec.classes
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
        classes=quoted(classes),
        channels="any channels" if spec.d_input == 1 else f"{spec.d_input} channels",
        rate=spec.sample_rate,
    )
