"""Sweeps: many runs of one recipe, with values that optuna proposes, in search of the best."""
