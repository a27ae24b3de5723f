"""The engine: records, detection, action, and the loops of the roles.

The engine defines the ports through which it does I/O. It imports connectors only in
`engine.wiring`, where settings become a running set of roles.
"""
