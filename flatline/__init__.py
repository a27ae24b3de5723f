"""Flatline keeps fleets of virtual machines alive without staff.

All code is imported below this package: `engine`, `connectors` and `models` are links to the
folders of the same name in the project. Names of modules in texts omit `flatline`.
"""
