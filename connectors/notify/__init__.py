"""Tells people, through whatever takes a webhook."""
