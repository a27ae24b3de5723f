"""How right a replay was: pure functions of its lines and of the truth."""
