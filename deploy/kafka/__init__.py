"""Kafka's part of an installation: read and write rights on each topic."""
