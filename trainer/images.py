"""The notebook's images in a cache's file, indexed like an array: only those asked for are read."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.blocks import CheckedFile
from trainer.index import IMAGE_BYTES

IMAGE_SHAPE = (256, 256)

# Shape suffixes: N clips, B batch, I bytes of an image.


@dataclass(frozen=True, eq=False)
class StoredImages:
    """The notebook's images of some clips of a cache."""

    file: CheckedFile
    rows_N: NDArray[np.int64]
    """Where they lie in the file."""

    def __getitem__(self, indices_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of these of the clips, (B, 256, 256).

        Raises:
            CacheDamagedError: they aren't as they were written.
        """
        images_BI = np.empty((len(indices_B), IMAGE_BYTES), np.uint8)
        for image, row in zip(images_BI, self.rows_N[indices_B].tolist(), strict=True):
            self.file.read_into(row * IMAGE_BYTES, image.data)
        return images_BI.reshape(-1, *IMAGE_SHAPE)
