"""The longer verbs of the command `omics-data`, one file each."""
