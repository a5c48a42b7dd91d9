"""Making a trained model small and fast."""
