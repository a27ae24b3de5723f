"""What decides: records, detection, action, and the loops that drive them.

The engine owns the ports through which it reaches the world and imports no connector except in
`engine.wiring`, where settings become a running set of roles.
"""
