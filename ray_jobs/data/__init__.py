"""Preference pairs and evaluation prompts: reading, cleaning, quarantine, splits, program checks."""
