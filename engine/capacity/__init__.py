"""What planners ask: what will be used, what still fits, when a pool is full. Pure."""
