"""Code for all data modules: loaders, samplers, buckets, audio files."""
