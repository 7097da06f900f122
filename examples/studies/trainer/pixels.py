"""One image file as 8-bit pixels that look as they are meant to."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageColor, ImageOps, UnidentifiedImageError

from trainer.options import UsageError

Mode = Literal["L", "RGB"]

SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2"),
}
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000")
SIDEWAYS = 5
"""The first orientation of EXIF that swaps width and height."""
MAX_VALUES = 256
"""A map with more of them is not looked at closely."""
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

# What it warns of either becomes an error when the pixels are read, or does not concern them.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Facts(NamedTuple):
    """What a look at a whole file tells.

    Attributes:
        problem: why it cannot be read, or nothing.
        size: width and height, upright.
        orientation: how EXIF turns it, 1 for not at all.
        grey: whether it has no colours; in a map also where these are in a palette.
        transparent: whether something behind it would be seen.
        frames: how many images it holds.
        values: of a map, the different values as in :func:`read_map`; None if there are many.
        range_problem: why a map cannot be read other than as one of classes, or nothing.
    """

    problem: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    grey: bool = False
    transparent: bool = False
    frames: int = 1
    values: frozenset[int] | None = None
    range_problem: str = ""


def read(path: Path, mode: Mode = "RGB", background: str = "white") -> Image.Image:
    """The first frame, upright, in eight bits, what is transparent on the background."""
    with _opened(path) as image:
        flat, _ = _flattened(image, background)
        # Only now, for the sake of TIFF, which turns itself upright when it is read.
        return turned(flat.convert(mode), _orientation(image))


def read_map(path: Path) -> Image.Image:
    """The first frame of a map, upright, in mode ``I``, with the values that the file has.

    Those are indices into a palette rather than its colours, and ``0xRRGGBB`` where there are
    colours without a palette.
    """
    with _opened(path) as image:
        values = Image.fromarray(_values(image))
        return turned(values, _orientation(image))


def inspect(path: Path, is_map: bool = False) -> Facts:
    """Read the whole file and tell about it."""
    try:
        with _opened(path) as image:
            # Checksums of PNG; other formats show what is broken when they are decoded.
            image.verify()
        with _opened(path) as image:
            return _facts(image, is_map)
    except UsageError as error:
        return Facts(problem=str(error))


def orientation_of(path: Path) -> int:
    """How EXIF turns an image, 1 for not at all."""
    with _opened(path) as image:
        return _orientation(image)


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image, turned and mirrored as an orientation of EXIF has it."""
    if orientation == 1:
        return image
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info["exif"] = exif.tobytes()
    return ImageOps.exif_transpose(image)


def fitted(
    image: Image.Image,
    size: tuple[int, int],
    fit: Literal["resize", "stretch"],
    resampling: Image.Resampling,
) -> Image.Image:
    """An image at that width and height."""
    if fit == "stretch":
        return image.resize(size, resampling)
    return ImageOps.fit(image, size, resampling)


def printable(path: Path) -> str:
    """A path in one line, with what a terminal cannot show as escapes."""
    name = os.fsencode(path).decode(errors="backslashreplace")
    return name if name.isprintable() else ascii(name)[1:-1]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file; whatever goes wrong with it names it in one line."""
    try:
        with Image.open(path, formats=_known_formats()) as image:
            yield image
    # Decoders raise anything at a broken file.
    except Exception as error:
        raise UsageError(f"{printable(path)}: {_reason(error, path)}") from error


def _known_formats() -> list[str]:
    # Only these: for some of the others, Pillow would start programs.
    Image.init()
    return [each for each in _FORMATS if each in Image.OPEN]


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return "expected a file, found " + ("a link to none" if path.is_symlink() else "none")
    if isinstance(error, UnidentifiedImageError):
        return _unknown_content(path)
    if isinstance(error, Image.DecompressionBombError):
        return f"expected at most {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, found more"
    if isinstance(error, _UnknownRangeError):
        return str(error)
    return f"expected a whole image, found: {' '.join(str(error).split()) or repr(error)}"


def _unknown_content(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
        for name in _known_formats() if start else ():
            factory, accepts = Image.OPEN[name]
            if accepts is not None and accepts(start.ljust(16)) is True:
                file.seek(0)
                try:
                    factory(file, str(path))
                except Exception as error:
                    return f"expected a whole image, found a broken or unusual {name}: {error}"
    found = f"a file that begins with {start[:12]!r}" if start else "an empty file"
    return f"expected an image, as {', '.join(_FORMATS)}, found {found}"


class _UnknownRangeError(ValueError):
    """Values of which nobody knows what is black and what is white."""


def _facts(image: Image.Image, is_map: bool) -> Facts:
    orientation = _orientation(image)
    if image.format == "TIFF":
        # Which turns itself upright on the way, and has no orientation afterwards.
        image.load()
    size = image.size[::-1] if _orientation(image) >= SIDEWAYS else image.size
    if not is_map:
        # JPEG at an eighth of its size, for which all of the file is read in half of the time.
        image.draft(None, (1, 1))
    image.load()
    facts = Facts(
        size=size,
        orientation=orientation,
        grey=_bands(image) == "grey",
        frames=getattr(image, "n_frames", 1),
    )
    if not is_map:
        return facts._replace(transparent=_flattened(image, "white")[1])
    facts = facts._replace(grey=_bands(image) != "colours", values=_few_values(image))
    try:
        _flattened(image, "white")
    except _UnknownRangeError as error:
        return facts._replace(range_problem=str(error))
    return facts


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def _bands(image: Image.Image) -> Literal["grey", "palette", "colours"]:
    if image.mode in ("P", "PA"):
        return "palette"
    return "grey" if image.mode[0] in "1LIF" and image.mode != "LAB" else "colours"


def _flattened(image: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """The image in eight bits and without alpha, and whether that changed something."""
    if image.mode[0] in "IF":
        image = _in_eight_bits(image)
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image, False
    image = image.convert("RGBA")
    if image.getchannel("A").histogram()[255] == image.width * image.height:
        return image.convert("RGB"), False
    under = Image.new("RGBA", image.size, ImageColor.getrgb(background)[:3])
    return Image.alpha_composite(under, image).convert("RGB"), True


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 or 32 bits or of floats, from the darkest to the brightest there may be."""
    image.load()
    values = np.asarray(image).astype(np.float32)
    grey = Image.fromarray(np.rint(values * (255 / _brightest(image, values))).astype(np.uint8))
    tags = getattr(image, "tag_v2", {})
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = ImageChops.invert(grey)
    if "transparency" in image.info:
        opaque = values != image.info["transparency"]
        grey.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return grey


def _brightest(image: Image.Image, values: NDArray[np.float32]) -> float:
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise _UnknownRangeError(
                f"expected floats from 0 for black to 1 for white, found {low:g} to {high:g}; "
                "save them in that range, or with 8 or 16 bits"
            )
        return 1
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise _UnknownRangeError(
            "expected grey with 8 or 16 bits, or floats from 0 to 1; found whole numbers with a "
            "sign or 32 bits, of which nobody knows which one is white; save them in one of those "
            "ways"
        )
    # Scanners and cameras also write 12 bits.
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, (16,))[0]
    return float(2**bits - 1)


def _values(image: Image.Image) -> NDArray[np.int32]:
    """What the file has at each pixel; see :func:`read_map`."""
    if image.mode == "1":
        image = image.convert("L")
    if _bands(image) == "colours":
        flat, _ = _flattened(image, "white")
        red, green, blue = np.moveaxis(np.asarray(flat.convert("RGB"), dtype=np.int32), -1, 0)
        return red << 16 | green << 8 | blue
    values = np.asarray(image if len(image.getbands()) == 1 else image.getchannel(0))
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        raise _UnknownRangeError("expected whole numbers in a map of classes, found fractions")
    return values.astype(np.int32)


def _few_values(image: Image.Image) -> frozenset[int] | None:
    # Gives up at the first colour too many, where sorting a photograph would take long.
    if _bands(image) == "colours" and image.getcolors(MAX_VALUES) is None:
        return None
    try:
        different = np.unique(_values(image))
    except _UnknownRangeError:
        return None
    return frozenset(different.tolist()) if len(different) <= MAX_VALUES else None
