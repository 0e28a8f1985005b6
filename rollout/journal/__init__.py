"""What has happened, on disk: the journal, its schema, its audit, and trajectories as Parquet."""
