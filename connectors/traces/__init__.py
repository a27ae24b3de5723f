"""Recorded datasets as columns, and as the frames a collector would have written."""
