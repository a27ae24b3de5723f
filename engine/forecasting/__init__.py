"""Forecasts of the use of VMs and nodes, from frames, and how good the forecasts are. No I/O."""
