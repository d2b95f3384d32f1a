"""The project's own data sets: short tasks whose right answer a program can check, made from a seed."""
