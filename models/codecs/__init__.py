"""Compiled passes over bytes: packed columns to words, and numbers to text."""
