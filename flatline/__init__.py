"""Flatline keeps fleets of virtual machines alive without staff.

All code is imported as part of this package: its entries `engine`, `connectors` and `models` are
links to the folders of the same name in the project. Texts omit `flatline.` from module names.
"""
