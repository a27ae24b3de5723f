"""Adapters for external systems. They make no decisions and are independent of each other.

A connector implements a port of `engine.ports` and translates the errors of its library into errors
of `engine.errors`. It does not import the packages for detection and action, nor any model.
"""
