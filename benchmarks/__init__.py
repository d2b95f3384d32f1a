"""One module per published figure, peer and product in one run.

`python -m benchmarks.NAME [--quick] [--json FILE]`
"""
