"""Schemas of the log's records, and functions that encode and decode them.

The msgspec structs are the single source of each schema. Every release can decode the records of
earlier releases.
"""
