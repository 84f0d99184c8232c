"""Training data: sets, splits, sampling, batches, augmentation."""
