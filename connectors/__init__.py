"""Adapters for external systems. They make no decisions and are independent of each other.

A connector implements a port of `engine.ports` and translates the errors of its library into those
of `engine.errors`. It imports no detection, action or models.
"""
