# Empty: every decoding worker imports this package, and must not import Kornia with it.
