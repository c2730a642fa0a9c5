"""Labelled images: in memory as one tensor, or in files.

Readers of image files and official data sets, which need torchvision, are imported when they are used.
"""

from skipnet_rl.data.images import Images
from skipnet_rl.data.imageset import ImageSet
from skipnet_rl.data.sources import DATASETS, SPLITS, load_images, resolve_dataset

__all__ = ["DATASETS", "SPLITS", "ImageSet", "Images", "load_images", "resolve_dataset"]
