"""`bsnn bench`: the step beside what a user would write instead, and beside the hardware's floor."""
