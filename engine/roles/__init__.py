"""One loop for each role, none of which makes decisions.

A role reads through a port, passes values to a pure step and carries out its instructions.
"""
