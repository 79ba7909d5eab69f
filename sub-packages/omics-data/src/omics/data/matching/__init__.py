"""Which gene of one table is which of another."""
