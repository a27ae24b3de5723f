"""Capacity planning: forecasts of use, free room, and the time until a pool is full. No I/O."""
