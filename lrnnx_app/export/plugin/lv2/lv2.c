/* The plug-in as LV2; plugin.ttl describes its ports. */
#include "lv2_abi.h"

#include <stddef.h>

#include "facts.h"
#include "plugin.h"

static void *instantiate(const lv2_plugin *plugin, double rate, const char *bundle, const void *features) {
    (void)plugin, (void)bundle, (void)features;
    return plugin_new(rate);
}

static void connect(void *instance, uint32_t port, void *numbers) {
    plugin_connect(instance, port, numbers);
}

static void run(void *instance, uint32_t count) {
    plugin_run(instance, count, plugin_control(instance, SWITCH) > 0.0f);
}

static const lv2_plugin plugin = {
    .uri = "urn:lrnnx:" PLUGIN_NAME,
    .instantiate = instantiate,
    .connect = connect,
    .activate = plugin_reset,
    .run = run,
    .cleanup = plugin_free,
};

__attribute__((visibility("default"))) const lv2_plugin *lv2_descriptor(uint32_t index) {
    return index ? NULL : &plugin;
}
