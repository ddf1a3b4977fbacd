/* How a host of LV2 and its plug-ins meet, as far as this one needs it. */
#ifndef LV2_ABI_H
#define LV2_ABI_H

#include <stdint.h>

typedef struct lv2_plugin {
    const char *uri;
    void *(*instantiate)(const struct lv2_plugin *plugin, double rate, const char *bundle, const void *more);
    void (*connect)(void *instance, uint32_t port, void *numbers);
    void (*activate)(void *instance);
    void (*run)(void *instance, uint32_t count);
    void (*deactivate)(void *instance);
    void (*cleanup)(void *instance);
    const void *(*extension)(const char *uri);
} lv2_plugin;

/* The plug-in of that number in a library, or NULL. */
const lv2_plugin *lv2_descriptor(uint32_t index);

#endif
