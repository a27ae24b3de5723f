"""Probes of guests over the node's bridges."""
