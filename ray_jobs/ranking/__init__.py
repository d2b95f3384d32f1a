"""Several bases, each tuned, judged on the same prompts and ranked."""
