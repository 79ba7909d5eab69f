"""Configurations of bmfm and Bioformers to ours, key by key."""
