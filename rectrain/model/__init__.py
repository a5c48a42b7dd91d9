"""The encoder, features, sharing, heads, losses, and the model that joins them."""
