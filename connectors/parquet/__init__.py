"""The history without a server: Parquet files queried by DuckDB."""
