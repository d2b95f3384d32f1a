"""Judge pairs: prompts as a judge gets them, with the score that the answer in them deserves and another one.

What a judge is tuned on. The tasks in them are of other families than those of the bundled pairs and prompts.
"""
