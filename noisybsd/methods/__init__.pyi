from noisybsd.methods.alone import Method as Method
from noisybsd.methods.alone import build as build
from noisybsd.methods.presets import METHODS as METHODS
