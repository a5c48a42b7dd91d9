"""Rows as users give them, checked, split and tokenised; then read by a plan."""
