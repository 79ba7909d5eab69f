"""Stores as shards for clusters, and back to batches."""
