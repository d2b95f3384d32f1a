"""The command line `orpo`: the functions of the modules under one name."""
