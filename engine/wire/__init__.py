"""Record schemas of the log: each record as a value and as bytes.

The msgspec structs are the single source of each schema. Released bytes stay decodable.
"""
