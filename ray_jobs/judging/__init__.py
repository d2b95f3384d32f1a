"""Flow Judge: scores of answers by a rubric, with the judge's own word on each, and how far to trust them."""
