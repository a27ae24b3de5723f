"""One loop for each role, and no decision in any of them.

A role reads through a port, hands values to a pure step and carries out what the step returns.
"""
