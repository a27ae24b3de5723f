"""The history without a server: Parquet files that DuckDB answers from."""
