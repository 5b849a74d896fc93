"""`bsnn report`: the results on one page, and their export into a repository."""
