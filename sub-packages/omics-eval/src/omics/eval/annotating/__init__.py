"""`annotate`: labels of cells by a split, by folds or by the head of a model, and their scores."""
