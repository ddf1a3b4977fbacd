/* The plug-in as LADSPA. */
#include "ladspa_abi.h"

#include <stddef.h>

#include "facts.h"
#include "plugin.h"

static const int kinds[PORTS] = {
    [INPUT] = IS_INPUT | IS_AUDIO,     [OUTPUT] = IS_OUTPUT | IS_AUDIO,
    [SWITCH] = IS_INPUT | IS_CONTROL,  [MIX] = IS_INPUT | IS_CONTROL,
    [LATENCY] = IS_OUTPUT | IS_CONTROL,
};
static const char *const names[PORTS] = {
    [INPUT] = "Input", [OUTPUT] = "Output", [SWITCH] = "Bypass", [MIX] = "Mix", [LATENCY] = "latency",
};
static const ladspa_range ranges[PORTS] = {
    [SWITCH] = {TOGGLED | BEGINS_AT_0, 0.0f, 0.0f},
    [MIX] = {HAS_LEAST | HAS_MOST | BEGINS_AT_1, 0.0f, 1.0f},
};

static void *instantiate(const ladspa_plugin *plugin, unsigned long rate) {
    (void)plugin;
    return plugin_new((double)rate);
}

static void run(void *instance, unsigned long count) {
    plugin_run(instance, count, plugin_control(instance, SWITCH) <= 0.0f);
}

static const ladspa_plugin plugin = {
    .id = PLUGIN_ID,
    .label = PLUGIN_NAME,
    .properties = REAL_TIME,
    .name = PLUGIN_NAME,
    .maker = "lrnnx",
    .copyright = "None",
    .ports = PORTS,
    .kinds = kinds,
    .names = names,
    .ranges = ranges,
    .instantiate = instantiate,
    .connect = plugin_connect,
    .activate = plugin_reset,
    .run = run,
    .cleanup = plugin_free,
};

__attribute__((visibility("default"))) const ladspa_plugin *ladspa_descriptor(unsigned long index) {
    return index ? NULL : &plugin;
}
