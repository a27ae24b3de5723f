"""What crosses the log: every record as one value together with its bytes.

The msgspec structs here are the single source of each schema; released bytes decode for ever.
"""
