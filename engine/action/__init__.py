"""Decides which alerts lead to orders, and which orders to calls. Pure: no I/O, no detection.

The planner and every agent judge an order by the same rules over the same log.
"""
