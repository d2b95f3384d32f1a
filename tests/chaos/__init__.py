"""Whole pipelines under random kills, with stubs in place of models or with the real ones."""
