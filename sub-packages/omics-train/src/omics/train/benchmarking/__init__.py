"""The verb `bench`: limits of the machine, and our step, embedding and loop beside stock BERT."""
