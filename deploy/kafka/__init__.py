"""Kafka's side of an installation: who may read and write which topic."""
