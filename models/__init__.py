"""What is normal: baselines, tests and online models as arrays, without I/O and without a clock.

Nothing here knows Flatline; only numpy, numba and river are imported.
"""
