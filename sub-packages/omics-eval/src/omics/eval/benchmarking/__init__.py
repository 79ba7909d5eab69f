"""A bundle on published datasets, from the user's copies to rows of results."""
