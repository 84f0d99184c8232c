"""Losses: metric losses, classifiers, CAM-loss, GAIN, distillation."""
