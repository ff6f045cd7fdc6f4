"""Readers of the layouts in which datasets lie on disk."""
