"""What a model costs: to train, to tune, to serve and to keep."""
