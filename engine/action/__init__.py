"""From alerts to orders, and from orders to calls: pure, independent of how a fault is detected.

The planner and every agent judge an order by the same rules over the same log.
"""
