"""RandAugment's operations as the field's code applies them: Pillow, one picture after the other."""

from PIL import Image, ImageEnhance, ImageOps


def pillow(name: str, picture: Image.Image, v: float) -> Image.Image:
    """The reference: one image, as the field's code calls Pillow."""
    width, height = picture.size
    shift = round(v * (width if name == "translate_x" else height) * 65536) / 65536
    match name:
        case "autocontrast":
            return ImageOps.autocontrast(picture)
        case "brightness":
            return ImageEnhance.Brightness(picture).enhance(v)
        case "colour":
            return ImageEnhance.Color(picture).enhance(v)
        case "contrast":
            return ImageEnhance.Contrast(picture).enhance(v)
        case "equalize":
            return ImageOps.equalize(picture)
        case "posterize":
            return ImageOps.posterize(picture, int(v))
        case "rotate":
            return picture.rotate(v)
        case "sharpness":
            return ImageEnhance.Sharpness(picture).enhance(v)
        case "shear_x":
            return picture.transform(picture.size, Image.Transform.AFFINE, (1, v, 0, 0, 1, 0))
        case "shear_y":
            return picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 0, v, 1, 0))
        case "solarize":
            return ImageOps.solarize(picture, v)
        case "translate_x":
            return picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, shift, 0, 1, 0))
        case "translate_y":
            return picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, shift))
    return picture
