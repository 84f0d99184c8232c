"""Checks of maps: faithfulness, sanity, sensitivity, localisation."""
