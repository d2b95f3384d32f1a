"""The search over trial settings: what is searched, and how the best trial is chosen."""
