"""From sources to a store: looking, planning, streaming, resuming."""
