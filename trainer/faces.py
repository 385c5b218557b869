"""Where the face is in a clip's frames, and how it is cut out."""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade

# Shape suffixes: P moments; a box is its centre's column and row, and its side, as shares of the
# frame's width, height and longer side.

DETECTION_SIDE = 160
"""Frames are looked at in this size, in pixels of the longer side."""
SMALLEST_FACE = 32
"""In such a frame."""
STRIDE = 2
"""Every so many moments the face is looked for; in between it is where the neighbours say."""
MARGIN = 1.3
"""The cut is so much larger than the detector's box, which ends at brows and lower lip."""
SMOOTHED_MOMENTS = 3
"""A detection that its neighbours don't share is passed over."""

Box = NDArray[np.float64]
"""(3,)"""


def track_face(images: Sequence[NDArray[np.uint8]]) -> list[Box] | list[None]:
    """Return the face's box in each frame (H, W, 3), smoothed; None for all if there is no face.

    Source: local binary patterns in a boosted cascade, Liao et al. 2007, as trained for OpenCV and
    shipped by scikit-image.
    """
    found = {moment: _find_face(images[moment]) for moment in range(0, len(images), STRIDE)}
    known = {moment: box for moment, box in found.items() if box is not None}
    if not known:
        return [None] * len(images)
    boxes_K3 = median_filter(np.stack(list(known.values())), (SMOOTHED_MOMENTS, 1), mode="nearest")
    moments = np.arange(len(images))
    columns = [np.interp(moments, list(known), column) for column in boxes_K3.T]
    return list(np.stack(columns, axis=1))


def crop_face(image: NDArray[np.uint8], box: Box | None, size: int) -> NDArray[np.uint8]:
    """Return the face as (size, size, 3); the whole frame, squeezed, without a box."""
    if box is not None:
        height, width = image.shape[:2]
        half = max(1, round(float(box[2]) * max(height, width) * MARGIN / 2))
        column, row = round(float(box[0]) * width), round(float(box[1]) * height)
        image = cv2.copyMakeBorder(image, half, half, half, half, cv2.BORDER_REPLICATE)
        image = image[row : row + 2 * half, column : column + 2 * half]
    resized: NDArray[np.uint8] = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return resized


def _find_face(image: NDArray[np.uint8]) -> Box | None:
    """Return the box of the largest face."""
    scale = DETECTION_SIDE / max(image.shape)
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = small.shape[:2]
    faces = _detector().detect_multi_scale(
        img=small,
        scale_factor=1.2,
        step_ratio=1,
        min_size=(SMALLEST_FACE, SMALLEST_FACE),
        max_size=(width, height),
    )
    if not faces:
        return None
    face = max(faces, key=lambda face: face["width"])
    column, row = face["c"] + face["width"] / 2, face["r"] + face["height"] / 2
    return np.array([column / width, row / height, face["width"] / max(small.shape)])


@lru_cache(maxsize=1)
def _detector() -> Cascade:
    return Cascade(lbp_frontal_face_cascade_filename())
