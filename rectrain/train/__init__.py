"""ZeRO training on Ray Train: settings, step, checkpoints, workers."""
