"""The tests, in the order in which they are run. Their names are claims."""
