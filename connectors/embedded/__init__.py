"""The embedded log: SQLite files or memory behind the same port as Kafka, without a server."""
