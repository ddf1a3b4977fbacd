/* How a host of LADSPA 1.1 and its plug-ins meet, as far as this one needs it. */
#ifndef LADSPA_ABI_H
#define LADSPA_ABI_H

enum { IS_INPUT = 1, IS_OUTPUT = 2, IS_CONTROL = 4, IS_AUDIO = 8 }; /* kinds of a port */
enum { HAS_LEAST = 1, HAS_MOST = 2, TOGGLED = 4, BEGINS_AT_0 = 0x200, BEGINS_AT_1 = 0x240 }; /* its hints */
enum { REAL_TIME = 4 }; /* property of a plug-in that never waits */

typedef struct {
    int hints;
    float least, most;
} ladspa_range;

typedef struct ladspa_plugin {
    unsigned long id;
    const char *label;
    int properties;
    const char *name, *maker, *copyright;
    unsigned long ports;
    const int *kinds;
    const char *const *names;
    const ladspa_range *ranges;
    void *data;
    void *(*instantiate)(const struct ladspa_plugin *plugin, unsigned long rate);
    void (*connect)(void *instance, unsigned long port, float *numbers);
    void (*activate)(void *instance);
    void (*run)(void *instance, unsigned long count);
    void (*run_adding)(void *instance, unsigned long count);
    void (*set_run_adding_gain)(void *instance, float gain);
    void (*deactivate)(void *instance);
    void (*cleanup)(void *instance);
} ladspa_plugin;

/* The plug-in of that number in a library, or NULL. */
const ladspa_plugin *ladspa_descriptor(unsigned long index);

#endif
