"""Mechanisms that all readers of the stream share: consumer, snapshots, counters and back-off."""
