"""One run in memory: training, prediction and measurement."""
