"""Small random micro-batches and models for the model's tests."""

from model_toy import features, make_batch, make_model, make_texts

__all__ = ["features", "make_batch", "make_model", "make_texts"]
