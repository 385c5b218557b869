"""The Kaggle notebook's own image of a clip, pixel for pixel."""

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 22_050
"""Hz; librosa's default, on which the notebook rests."""
IMAGE_SIZE = 256
JPEG_QUALITY = 95


def notebook_image(samples_T: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the (256, 256) grey image that the notebook would train on.

    `samples_T` is sound at 22,050 Hz. Mel power to dB below its maximum, stretched to 0-255,
    truncated, squeezed to a square, and once through JPEG, whose artefacts the notebook keeps.

    Source: the notebook, with librosa and OpenCV themselves.
    """
    import cv2
    import librosa

    mel_MF = librosa.feature.melspectrogram(y=samples_T, sr=SAMPLE_RATE, n_mels=128)
    decibel_MF = librosa.power_to_db(mel_MF, ref=np.max)
    grey_MF = cv2.normalize(decibel_MF, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    image = cv2.resize(grey_MF, (IMAGE_SIZE, IMAGE_SIZE))
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE), np.uint8)
