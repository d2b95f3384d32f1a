"""The stages of a run: unpack what the run folder holds, call the plain function, pack what it gives.

The modules here are the only ones of `ray_jobs` that import Ray, and they do so where they use it.
"""
