"""Data sets as one uint8 tensor on the device, with per-sample augmentation."""

from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.data.sources import DATASETS, SPLITS, load_images, resolve_dataset

__all__ = ["DATASETS", "SPLITS", "ImageSet", "load_images", "resolve_dataset"]
