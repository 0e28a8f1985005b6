"""What every HTTP client of ours shares: connections, retries, and how an answer that is no success is read."""
