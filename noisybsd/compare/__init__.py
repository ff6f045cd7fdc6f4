"""Finished runs side by side, as tables and pictures."""
