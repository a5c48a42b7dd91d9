"""Small random micro-batches and models for what counts their work."""

from model_toy import make_batch, make_model, make_texts

__all__ = ["make_batch", "make_model", "make_texts"]
