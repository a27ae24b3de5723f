"""From alerts to orders, and from orders to calls: pure, and ignorant of how a fault was found.

The planner and every agent judge an order by the same rules over the same log.
"""
