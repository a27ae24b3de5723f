"""From frames to alerts: pure functions of values, time included.

Counters become rates, rates meet what each VM is expected to do, evidence adds up to a hypothesis,
the fleet explains what it can, and what is left over becomes an incident.
"""
