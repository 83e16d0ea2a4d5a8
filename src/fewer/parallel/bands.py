"""How an image is cut into bands, one a device."""

from dataclasses import dataclass

from fewer.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Bands:
    """A cut of `length` rows (or columns) into consecutive bands, in rank order."""

    lengths: tuple[int, ...]

    @property
    def length(self) -> int:
        """Rows in all."""
        return sum(self.lengths)

    def start(self, rank: int) -> int:
        """First row of a rank's band."""
        return sum(self.lengths[:rank])

    def scaled(self, numerator: int, denominator: int = 1) -> "Bands":
        """The same cut at another resolution, e.g. `scaled(2)` behind an upsampling."""
        return Bands(tuple(length * numerator // denominator for length in self.lengths))

    def halved(self, times: int) -> "Bands":
        """The same cut so many convolutions of stride 2 later: a row without a pair stays a row."""
        return Bands(tuple(-(-length // 2**times) for length in self.lengths))


def cut(length: int, parts: int, unit: int = 1, least: int = 1) -> Bands:
    """`length` rows into `parts` bands of whole units; the first bands take one unit more if need be.

    Raises `ConfigError` if a device would get less than `least` units (what its neighbours' convolutions
    look into), or if the length is no multiple of the unit.
    """
    if length % unit:
        near = max(1, round(length / unit)) * unit
        raise ConfigError(f"{length} rows don't divide into units of {unit}; the nearest size is {near}")
    units = length // unit
    small, larger = divmod(units, parts)
    if small < least:
        raise ConfigError(
            f"{length} rows cannot be cut into {parts} bands of at least {least * unit}; "
            f"use at most {max(units // least, 1)} devices or at least {parts * unit * least} rows"
        )
    return Bands(tuple((small + (rank < larger)) * unit for rank in range(parts)))


def cut_ragged(length: int, parts: int, unit: int) -> Bands:
    """As `cut`, for any length: the last band ends where the picture does, within a unit."""
    whole = -(-length // unit) * unit
    lengths = cut(whole, parts, unit).lengths
    return Bands((*lengths[:-1], lengths[-1] - (whole - length)))
