"""The serving graph on Ray Serve: a small model in front, a large one for the doubtful."""
