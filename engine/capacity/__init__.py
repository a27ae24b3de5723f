"""Capacity planning: use, growth, time until a pool is full, and what-if analysis. No I/O."""
