"""The engine: records, detection, action, and the loops of the roles.

The engine defines the ports through which it does I/O. Only modules that build a process from its
settings import connectors: the wiring, `engine.log_factory`, `engine.kernel_cache`, `engine.cli`.
"""
