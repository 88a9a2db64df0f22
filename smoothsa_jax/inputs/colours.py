"""Convert pictures of any mode to 8-bit RGB, identically in data preparation and inference."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def rgb_of(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Convert gray, palette, CMYK and 16-bit pictures to 8-bit RGB; composite alpha on black."""
    if picture.mode.startswith("I"):  # 16 bit, even if Pillow stores it as 32
        values = np.asarray(picture).astype(np.int64)
        grey = np.clip(values // 256 if values.max(initial=0) > 255 else values, 0, 255)
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return np.asarray(picture.convert("RGB"))
