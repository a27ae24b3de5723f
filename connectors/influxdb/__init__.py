"""The history in InfluxDB: its line protocol, its answers and its refusals."""
