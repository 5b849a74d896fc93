"""`bsnn bench`: the step beside what a user would write instead, and beside the limit of the machine."""
