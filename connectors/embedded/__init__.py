"""The log without a server: one SQLite file, or memory, behind the same port as Kafka."""
