"""Readers of foreign files: each turns one kind of file into cells, genes and matrix blocks."""
