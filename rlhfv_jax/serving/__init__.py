"""Chat completions over HTTP: requests read and checked, gathered into batches, answered by one engine."""
