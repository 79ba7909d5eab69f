"""How well embeddings keep cell types together and mix batches, beside PCA."""
