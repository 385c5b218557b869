"""Images of a cache's file, indexed like an array: only those asked for are read."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainer.blocks import CheckedFile

IMAGE_SHAPE = (256, 256)

# Shape suffixes: N clips, B batch, I bytes of a clip's images.


@dataclass(frozen=True, eq=False)
class StoredImages:
    """The notebook's images of some clips of a cache, or the frames of their pictures."""

    file: CheckedFile
    rows_N: NDArray[np.int64]
    """Where they lie in the file."""
    shape: tuple[int, ...]
    """Of one clip's."""

    def __getitem__(self, indices_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of these of the clips, (B, *shape).

        Raises:
            CacheDamagedError: they aren't as they were written.
        """
        images_BI = np.empty((len(indices_B), math.prod(self.shape)), np.uint8)
        for image, row in zip(images_BI, self.rows_N[indices_B].tolist(), strict=True):
            self.file.read_into(row * images_BI.shape[1], image.data)
        return images_BI.reshape(-1, *self.shape)

    def select(self, indices: NDArray[np.int64]) -> "StoredImages":
        """Return those of some of the clips; reads nothing."""
        return replace(self, rows_N=self.rows_N[indices])
