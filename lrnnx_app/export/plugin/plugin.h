/* A model that filters sound, for a host of any rate that asks for any number of samples. */
#ifndef PLUGIN_H
#define PLUGIN_H

/* The switch says whether the model is heard; each interface has its own meaning for it. */
enum { INPUT, OUTPUT, SWITCH, MIX, LATENCY, PORTS };

/* One channel in a host of that rate in Hz; NULL if the rate is none, or there is no memory.
 * All memory is taken here, none while sound runs. */
void *plugin_new(double rate);
void plugin_free(void *plugin);

/* Where a port's numbers lie. */
void plugin_connect(void *plugin, unsigned long port, float *numbers);
float plugin_control(const void *plugin, unsigned long port);

/* Forget all that was heard. */
void plugin_reset(void *plugin);

/* Filter so many samples; input and output may lie in the same memory.
 * If the model is not to be heard, the output is the input, as late as it is otherwise. */
void plugin_run(void *plugin, unsigned long count, int heard);

#endif
