"""Forecasts the use of VMs and nodes from frames, and measures the accuracy. No I/O."""
