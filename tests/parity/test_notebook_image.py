"""The notebook's image, against librosa and OpenCV as the notebook itself calls them."""

from pathlib import Path

import cv2
import librosa
import numpy as np
import pytest

from tests.media import make_tone, write_media
from trainer.audio import FloatArray, decode_mono, resample
from trainer.notebook_image import notebook_image


def make_sound(kind: str) -> FloatArray:
    rng = np.random.default_rng(7)
    if kind == "shortest":
        return resample(make_tone(440, 0.1, 22_050)[0], 22_050, 22_050)
    seconds = 40 if kind == "long" else 3
    noise_T = rng.normal(0, 0.05, seconds * 22_050).astype(np.float32)
    sound_T: FloatArray = noise_T + make_tone(300, seconds, 22_050)[0]
    return sound_T


@pytest.mark.parametrize("kind", ["speech-like", "shortest", "long"])
def test_image_equals_the_notebooks_own_pixel_for_pixel(tmp_path: Path, kind: str) -> None:
    """The same samples give the very pixels that the notebook reads back from its JPEG file."""
    y = make_sound(kind)
    mel = librosa.feature.melspectrogram(y=y, sr=22050, n_mels=128)
    log_mel = librosa.power_to_db(mel, ref=np.max)
    image = cv2.normalize(log_mel, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "mel.jpg"), cv2.resize(image, (256, 256)))
    expected = cv2.imread(str(tmp_path / "mel.jpg"), cv2.IMREAD_GRAYSCALE)
    assert expected is not None

    got = notebook_image(y)

    assert got.shape == (256, 256)
    assert got.dtype == np.uint8
    assert np.array_equal(got, expected)


@pytest.mark.parametrize(("rate", "wanted"), [(44_100, 22_050), (16_000, 22_050), (8000, 16_000)])
def test_resampling_equals_librosas(rate: int, wanted: int) -> None:
    """Resampling by hand is librosa's default, sample for sample."""
    rng = np.random.default_rng(3)
    samples_T = rng.normal(0, 0.1, 12_345).astype(np.float32)
    expected = librosa.resample(samples_T, orig_sr=rate, target_sr=wanted)
    assert np.array_equal(resample(samples_T, rate, wanted), expected)


@pytest.mark.filterwarnings("ignore:.*deprecated and slated for removal:DeprecationWarning")
def test_decoding_a_wav_file_equals_librosa_load(tmp_path: Path) -> None:
    """From the notebook's WAV file on, samples are those that librosa.load returns."""
    rng = np.random.default_rng(5)
    samples = rng.normal(0, 0.1, (2, 44_100)).astype(np.float32)
    path = write_media(tmp_path / "extracted_audio.wav", samples, 44_100)
    expected, _ = librosa.load(path)
    (got,) = decode_mono(path, [22_050])
    assert np.array_equal(got, expected)
