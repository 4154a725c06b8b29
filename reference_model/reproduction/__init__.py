"""Both tables of the paper: their runs, the results beside the published numbers, and the report."""
