"""Asks guests for a sign of life over the node's bridges."""
