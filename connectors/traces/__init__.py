"""Recorded datasets as columns, and as the frames that a collector would have written."""
