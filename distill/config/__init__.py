"""Recipes: the typed schema, merging, validation and messages. Nothing here imports torch."""
