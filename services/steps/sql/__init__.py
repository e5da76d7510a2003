"""The `sql` step type: DuckDB over CSV, Parquet and JSON."""
