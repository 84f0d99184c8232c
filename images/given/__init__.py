"""Sources of images other than folders, as a listing: tables, data sets, arrays, archives, URLs."""
