"""Checkpoints of a training: what is saved, when, and how a run goes on from one.

- A checkpoint is a folder of safetensors and JSON, written beside its name, fsynced and renamed.
- Nothing of Lightning's own checkpoints is used: those are pickles.
"""
