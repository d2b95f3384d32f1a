"""Folders in object stores, and what a node keeps of them.

A path never leaves its node: other nodes are told the URI of a file (`mirror.shared`) and fetch their own
copy (`node_cache.local_copy`). For paths outside of a mirror all of this does nothing.
"""
