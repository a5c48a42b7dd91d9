"""Search for the width, depth and training of a model by quality, cost and latency."""
