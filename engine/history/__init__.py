"""Rows of the history: from records of the log to samples, minutes and hours. No I/O."""
