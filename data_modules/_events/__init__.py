"""Events: readers of one file format each, simulated sensors, the store on disk, augmentation."""
