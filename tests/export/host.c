/* A host: LIBRARY ladspa|lv2 RATE SEED <x.f32 >y.f32, in blocks by chance, or in one if the seed is 0.
 * Input and output lie in the same memory. Before, the plug-in hears what it should bear, and must forget. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ladspa_abi.h"
#include "lv2_abi.h"

enum { MOST = 1 << 18, LONGEST = 1000 };

static const ladspa_plugin *ladspa;
static const lv2_plugin *lv2;
static void *instance;
static float sound[MOST], control[3];

static void *find(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found)
        exit(3);
    return found;
}

static void *begin(double rate) {
    return ladspa ? ladspa->instantiate(ladspa, (unsigned long)rate) : lv2->instantiate(lv2, rate, "", NULL);
}

static void run(float *x, size_t count) {
    for (unsigned port = 0; port < 5; ++port) {
        float *memory = port < 2 ? x : control + (port - 2);
        ladspa ? ladspa->connect(instance, port, memory) : lv2->connect(instance, port, memory);
    }
    ladspa ? ladspa->run(instance, count) : lv2->run(instance, (unsigned)count);
}

static size_t chance(size_t below) {
    return (size_t)rand() % below;
}

int main(int count, char **words) {
    static const float odd[] = {NAN, INFINITY, -INFINITY, 1e-40f, 1e30f, -1.0f, 0.0f};
    const float on = count > 2 && !strcmp(words[2], "lv2");
    float block[LONGEST];
    size_t samples;
    void *library;
    if (count != 5 || !(library = dlopen(words[1], RTLD_NOW)))
        return 2;
    if (on)
        lv2 = ((const lv2_plugin *(*)(unsigned))find(library, "lv2_descriptor"))(0);
    else
        ladspa = ((const ladspa_plugin *(*)(unsigned long))find(library, "ladspa_descriptor"))(0);
    if (begin(0.0) || begin(1e9) || !(instance = begin(atof(words[3]))))
        return 4;
    ladspa ? ladspa->activate(instance) : lv2->activate(instance);
    for (int i = 0; i < 200; ++i) {
        size_t size = chance(LONGEST);
        for (size_t t = 0; t < size; ++t)
            block[t] = odd[chance(sizeof odd / sizeof *odd)];
        control[0] = odd[chance(7)], control[1] = odd[chance(7)];
        run(block, size);
        for (size_t t = 0; t < size; ++t)
            if (!isfinite(block[t]))
                return 5;
    }
    ladspa ? ladspa->activate(instance) : lv2->activate(instance);
    srand((unsigned)atoi(words[4]));
    control[0] = on, control[1] = 1.0f;
    samples = fread(sound, sizeof *sound, MOST, stdin);
    for (size_t at = 0, size; at < samples; at += size) {
        size = strcmp(words[4], "0") ? chance(chance(2) ? 3 : LONGEST) : MOST;
        size = size < samples - at ? size : samples - at;
        run(sound + at, size);
    }
    fwrite(sound, sizeof *sound, samples, stdout);
    fprintf(stderr, "%.0f", (double)control[2]);
    ladspa ? ladspa->cleanup(instance) : lv2->cleanup(instance);
    dlclose(library);
    return 0;
}
