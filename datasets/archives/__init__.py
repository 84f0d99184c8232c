"""Archives of images, from strangers: arrays, zips and pickles, bounded before they are read."""
