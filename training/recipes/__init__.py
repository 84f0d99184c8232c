"""Recipes: reading them, running them, evaluating what they trained."""
