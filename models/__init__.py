"""Models of normal behaviour: baselines, tests and online models as arrays, no I/O, no clock.

This package does not depend on the rest of Flatline. It imports only numpy, numba and river.
"""
