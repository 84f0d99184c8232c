"""A segmentation recipe at a tiny size."""

RECIPE = """
name = "tiny"
[data]
size = 32
scenes = { classes = 2, train = 4, test = 2, size = 32 }
[weak.encoder]
architecture = "conv4"
options = { width = 8, last_pool = false }
[[weak.loss]]
kind = "cross_entropy"
[weak.run]
epochs = 1
[cues]
inference = { scales = [1.0], flip = false }
[segmenter]
weights = "weak"
options = { hidden = 8 }
run = { epochs = 1 }
[variants.cues]
[variants.masks]
cues.kind = "pseudo_masks"
"""
