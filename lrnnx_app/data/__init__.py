"""What every data module shares: loaders, samplers, buckets, audio files."""
