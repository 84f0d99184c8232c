"""Questions about a gallery's own data: duplicates, outliers, labels that neighbours outvote, leaks, confusions."""
