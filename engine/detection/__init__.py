"""Turn frames into alerts with pure functions of values; time is one of the values.

Counters become rates. Rates are compared with the baseline of each VM. Evidence is added for each
hypothesis. Common causes explain what they can, and every remaining fault becomes an incident.
"""
