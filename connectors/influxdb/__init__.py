"""The history in InfluxDB: line protocol, queries and rejections."""
