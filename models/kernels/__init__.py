"""Compiled loops over arrays: free functions that update state in place."""
