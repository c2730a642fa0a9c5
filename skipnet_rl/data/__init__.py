"""Labelled images: in memory as one tensor with per-sample augmentation, or in files."""

from skipnet_rl.data.files import ImageFiles
from skipnet_rl.data.images import Images
from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.data.sources import DATASETS, SPLITS, load_images, resolve_dataset

__all__ = ["DATASETS", "SPLITS", "ImageFiles", "ImageSet", "Images", "load_images", "resolve_dataset"]
