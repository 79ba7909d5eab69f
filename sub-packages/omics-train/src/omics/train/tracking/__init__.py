"""Trackers: where a run's numbers are shown beside its own files, while it runs and later."""
