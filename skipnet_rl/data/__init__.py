"""Labelled images: in memory as one tensor with per-sample augmentation, or in files.

What reads images in files and the official data sets is imported, with torchvision, when they are asked for.
"""

from skipnet_rl.data.images import Images
from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.data.sources import DATASETS, SPLITS, load_images, resolve_dataset

__all__ = ["DATASETS", "SPLITS", "ImageSet", "Images", "load_images", "resolve_dataset"]
