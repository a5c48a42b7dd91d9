"""Trained models in plain torch: scores of rows, evaluation against baselines."""
