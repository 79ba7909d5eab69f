"""The loader: orders of the epoch, batches, buffers, resuming."""
