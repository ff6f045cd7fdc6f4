"""noisybsd: image classifiers from partly wrong labels."""

__version__ = "0.1.0"
