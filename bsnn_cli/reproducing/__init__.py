"""`bsnn reproduce` and `bsnn report`: the whole plan, and one page that shows how it went."""
