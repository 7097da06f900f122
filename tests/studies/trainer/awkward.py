"""Image files that are easily read wrongly: real files of each kind, and what they show."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageCms

RAMP = np.tile(np.linspace(0, 255, 8).round().astype(np.uint8), (8, 1))
"""From black on the left to white on the right."""
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
INSIDE = np.zeros((8, 8), bool)
INSIDE[2:6, 2:6] = True
CUTOUT = np.where(INSIDE[..., None], (0, 0, 255), 255).astype(np.uint8)
"""A blue square on white."""
# White above black and right of it grey, so that no turn leaves it as it is.
CORNER = np.zeros((16, 8, 3), np.uint8)
CORNER[:8], CORNER[:, 6:] = 255, 128

Content = np.ndarray | str
KINDS: dict[str, Callable[[Path], Content]] = {}
"""By the name of the file: writes it, and returns the pixels to be seen or the problem, a regular
expression.
"""


def kind(name: str) -> Callable[[Callable[[Path], Content]], Callable[[Path], Content]]:
    def register(write: Callable[[Path], Content]) -> Callable[[Path], Content]:
        KINDS[name] = write
        return write

    return register


def png(path: Path, rows: np.ndarray, bits: int, colour: int, extra: bytes = b"") -> None:
    """A PNG of packed rows, with bits and a colour type that Pillow does not write."""
    width = rows.shape[1] * 8 // bits // {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def chunk(name: bytes, content: bytes) -> bytes:
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def big_endian(values: np.ndarray) -> np.ndarray:
    return values.astype(">u2").view(np.uint8).reshape(len(values), -1)


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def lying(pixels: np.ndarray, number: int) -> np.ndarray:
    """How a camera stores what is upright if it notes this orientation of EXIF."""
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, 1),
        7: np.rot90(pixels, 2).swapaxes(0, 1),
        8: np.rot90(pixels, -1),
    }
    return np.ascontiguousarray(stored[number])


def paletted() -> Image.Image:
    """Three colours; the index 1 is inside."""
    image = Image.fromarray(INSIDE.astype(np.uint8))
    image.putpalette([255, 255, 255, 0, 0, 255, 9, 9, 9])
    return image


@kind("plain.png")
def _(path: Path) -> Content:
    Image.fromarray(COLOURS).save(path)
    return COLOURS


@kind("UPPER.PNG")
def _(path: Path) -> Content:
    Image.fromarray(COLOURS).save(path)
    return COLOURS


@kind("named-wrongly.png")
def _(path: Path) -> Content:
    Image.fromarray(COLOURS).save(path, "BMP")
    return COLOURS


@kind("profile.png")
def _(path: Path) -> Content:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    Image.fromarray(COLOURS).save(path, icc_profile=profile.tobytes())
    return COLOURS


@kind("grey.png")
def _(path: Path) -> Content:
    Image.fromarray(RAMP).save(path)
    return RAMP


@kind("grey-1-bit.png")
def _(path: Path) -> Content:
    Image.fromarray(RAMP > 127).save(path)
    return np.where(RAMP > 127, 255, 0)


@kind("grey-2-bits.png")
def _(path: Path) -> Content:
    png(path, np.full((8, 2), 0b00011011, np.uint8), 2, 0)
    return np.tile([0, 85, 170, 255], (8, 2))


@kind("grey-16-bits.png")
def _(path: Path) -> Content:
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(path)
    return RAMP


@kind("grey-16-bits.pgm")
def _(path: Path) -> Content:
    path.write_bytes(b"P5 8 8 1023\n" + (RAMP * (1023 / 255)).round().astype(">u2").tobytes())
    return RAMP


@kind("grey-16-bits-transparent.png")
def _(path: Path) -> Content:
    # The value 0 is transparent, and only that.
    values = np.maximum(RAMP.astype(np.uint16) * 257, np.uint16(1))
    values[:, 7] = 0
    png(path, big_endian(values), 16, 0, chunk(b"tRNS", b"\0\0"))
    return RAMP


@kind("grey-12-bits.tif")
def _(path: Path) -> Content:
    # Pairs of pixels in three bytes, 8 of them in a row that Pillow takes for 12 pixels.
    values = (RAMP.astype(int) * 4095 / 255).round().astype(int)
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    Image.fromarray(packed.reshape(8, 12).astype(np.uint8)).save(path)
    content = path.read_bytes()
    for tag, type_and_count, old, new in ((256, (4, 1), 12, 8), (258, (3, 1), 8, 12)):
        entry = struct.pack("<HHLL", tag, *type_and_count, old)
        assert entry in content
        content = content.replace(entry, struct.pack("<HHLL", tag, *type_and_count, new))
    path.write_bytes(content)
    return RAMP


@kind("grey-16-bits-other-order.tif")
def _(path: Path) -> Content:
    tifffile.imwrite(path, RAMP.astype(np.uint16) * 257, byteorder=">")
    return RAMP


@kind("grey-16-bits-white-is-zero.tif")
def _(path: Path) -> Content:
    tifffile.imwrite(path, RAMP.astype(np.uint16) * 257, photometric="miniswhite")
    return 255 - RAMP


@kind("floats.tif")
def _(path: Path) -> Content:
    Image.fromarray(RAMP.astype(np.float32) / 255).save(path)
    return RAMP


@kind("floats-to-255.tif")
def _(path: Path) -> Content:
    Image.fromarray(RAMP.astype(np.float32)).save(path)
    return "expected floats from 0 for black to 1 for white, found 0 to 255"


@kind("floats-with-nan.tif")
def _(path: Path) -> Content:
    Image.fromarray(np.where(INSIDE, np.nan, 0.5).astype(np.float32)).save(path)
    return "expected floats from 0 for black to 1 for white, found nan"


@kind("grey-32-bits.tif")
def _(path: Path) -> Content:
    Image.fromarray(RAMP.astype(np.int32) * 1000).save(path)
    return "expected .* found whole numbers with a sign or 32 bits"


@kind("floats-of-64-bits.tif")
def _(path: Path) -> Content:
    tifffile.imwrite(path, RAMP / 255)
    return "expected a whole image, found a broken or unusual TIFF: unknown pixel mode"


@kind("signed-16-bits.tif")
def _(path: Path) -> Content:
    tifffile.imwrite(path, RAMP.astype(np.int16) - 100)
    return "expected .* found whole numbers with a sign or 32 bits"


@kind("colours-16-bits.png")
def _(path: Path) -> Content:
    png(path, big_endian(COLOURS.reshape(8, 24).astype(np.uint16) * 257), 16, 2)
    return COLOURS


@kind("cutout.png")
def _(path: Path) -> Content:
    values = np.zeros((8, 8, 4), np.uint8)
    values[..., 0] = 255
    values[INSIDE] = (0, 0, 255, 255)
    Image.fromarray(values).save(path)
    return CUTOUT


@kind("half-transparent-16-bits.png")
def _(path: Path) -> Content:
    values = np.zeros((8, 8, 4), np.uint16)
    values[..., 3] = 128 * 257
    png(path, big_endian(values.reshape(8, 32)), 16, 6)
    return np.full((8, 8, 3), 127)


@kind("grey-with-alpha.png")
def _(path: Path) -> Content:
    values = np.stack([RAMP, np.where(INSIDE, 255, 0).astype(np.uint8)], -1)
    Image.fromarray(values).save(path)
    return np.where(INSIDE, RAMP, 255)


@kind("grey-with-transparent-value.png")
def _(path: Path) -> Content:
    Image.fromarray(RAMP).save(path, transparency=0)
    return np.where(RAMP == 0, 255, RAMP)


@kind("palette.png")
def _(path: Path) -> Content:
    paletted().save(path)
    return CUTOUT


@kind("palette-transparent.png")
def _(path: Path) -> Content:
    image = paletted()
    image.putpalette([7, 7, 7, 0, 0, 255])
    image.save(path, transparency=0)
    return CUTOUT


@kind("palette-half-transparent.png")
def _(path: Path) -> Content:
    paletted().save(path, transparency=b"\xff\x80")
    return np.where(INSIDE[..., None], (127, 127, 255), 255)


@kind("ink.tif")
def _(path: Path) -> Content:
    ink = [Image.fromarray(255 - COLOURS[..., channel]) for channel in range(3)]
    Image.merge("CMYK", [*ink, Image.new("L", (8, 8), 0)]).save(path)
    return COLOURS


@kind("animated.gif")
def _(path: Path) -> Content:
    other = Image.new("P", (8, 8), 2)
    other.putpalette([255, 255, 255, 0, 0, 255, 9, 9, 9])
    paletted().save(path, save_all=True, append_images=[other])
    return CUTOUT


@kind("animated.png")
def _(path: Path) -> Content:
    Image.fromarray(COLOURS).save(path, save_all=True, append_images=[Image.new("RGB", (8, 8))])
    return COLOURS


@kind("pages.tif")
def _(path: Path) -> Content:
    Image.fromarray(COLOURS).save(path, save_all=True, append_images=[Image.new("RGB", (8, 8))])
    return COLOURS


@kind("turned.png")
def _(path: Path) -> Content:
    Image.fromarray(lying(CORNER, 6)).save(path, exif=oriented(6))
    return CORNER


@kind("turned.tif")
def _(path: Path) -> Content:
    Image.fromarray(lying(CORNER, 6)).save(path, exif=oriented(6))
    return CORNER


@kind("turned-16-bits.png")
def _(path: Path) -> Content:
    stored = lying(CORNER[..., 0], 8).astype(np.uint16) * 257
    Image.fromarray(stored).save(path, exif=oriented(8))
    return CORNER[..., 0]


@kind("ink.jpg")
def _(path: Path) -> Content:
    # As Adobe's programs write it, all values inverted.
    Image.new("CMYK", (8, 8), (255, 0, 255, 0)).save(path, quality=100)
    return np.full((8, 8, 3), (0, 255, 0))


@kind("broken-half.jpg")
def _(path: Path) -> Content:
    Image.fromarray(COLOURS).resize((64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    return "expected a whole image, found: image file is truncated"


@kind("broken-half.png")
def _(path: Path) -> Content:
    Image.fromarray(COLOURS).resize((64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    return "expected a whole image, found: "


@kind("broken-half.tif")
def _(path: Path) -> Content:
    Image.fromarray(COLOURS).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    return "expected a whole image, found: "


@kind("broken-bit.png")
def _(path: Path) -> Content:
    Image.fromarray(COLOURS).save(path)
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    return "expected a whole image, found: broken "


@kind("empty.png")
def _(path: Path) -> Content:
    path.write_bytes(b"")
    return "expected an image, as PNG, .*, found an empty file"


@kind("page.jpg")
def _(path: Path) -> Content:
    path.write_text("<html>404 Not Found</html>")
    return "expected an image, as PNG, .*, found a file that begins with b'<html>404 No'"


@kind("program.png")
def _(path: Path) -> Content:
    # Pillow would start Ghostscript for it.
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    return "expected an image, as PNG, .*, found a file that begins with b'%!PS-Adobe-3'"


@kind("huge.png")
def _(path: Path) -> Content:
    png(path, np.zeros((1, 24), np.uint8), 8, 2)
    content = path.read_bytes()
    header = struct.pack(">IIBBBBB", 1 << 20, 1 << 20, 8, 2, 0, 0, 0)
    path.write_bytes(content[:8] + chunk(b"IHDR", header) + content[33:])
    return r"expected at most \d+ pixels, found more"


@kind("link-to-nothing.png")
def _(path: Path) -> Content:
    path.symlink_to("nowhere.png")
    return "expected a file, found a link to none"
