"""Measure the accuracy of a replay: pure functions of its lines and of the ground truth."""
