"""The tables that everyone shares: sensors, bands, order, units, normalisation constants.

Band order is the order of the last tensor axis of the OlmoEarth models. Mean and standard
deviation are the models' own pretraining statistics (``computed.json`` of the official packages);
the models see ``(x - (mean - 2 std)) / (4 std)``, never clipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bocage.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Band:
    """One spectral band or channel of a sensor."""

    name: str
    """Name as the product writes it: B02, vv, B10."""

    wavelength_nm: float | None = None
    """Centre wavelength; None for radar and maps."""

    ground_resolution_m: float = 10.0
    """Side of a pixel as acquired; the models read everything on a 10 m grid."""

    mean: float = 0.0
    """Pretraining mean in product units."""

    std: float = 1.0
    """Pretraining standard deviation in product units."""

    thermal: bool = False
    """Thermal bands are only ever replaced by thermal bands."""


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """A modality the encoders read."""

    name: str
    """Modality name of the official packages: sentinel2_l2a, sentinel1, landsat."""

    title: str
    """Name for people."""

    units: str
    """Product units of the values."""

    bands: tuple[Band, ...]
    """In tensor order."""

    band_sets_v1: tuple[tuple[int, ...], ...]
    """Indices of the bands that share a token in v1; later releases use one set of all bands."""

    aliases: dict[str, str] = field(default_factory=dict)
    """Other spellings of band names, upper case, to the name used here."""

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names in tensor order."""
        return tuple(band.name for band in self.bands)

    def band_name(self, spelling: str) -> str | None:
        """The name used here for any known spelling of a band, or None."""
        upper = spelling.strip().upper()
        for name in self.band_names:
            if upper == name.upper():
                return name
        return self.aliases.get(upper)


@dataclass(frozen=True, kw_only=True)
class MapModality:
    """A map that pretraining decodes and the encoder never reads."""

    name: str
    """Modality name of the official packages."""

    bands: tuple[str, ...]
    """In tensor order."""


def _band(
    name: str,
    mean: float,
    std: float,
    wavelength_nm: float | None = None,
    resolution_m: float = 10.0,
    *,
    thermal: bool = False,
) -> Band:
    return Band(
        name=name,
        mean=mean,
        std=std,
        wavelength_nm=wavelength_nm,
        ground_resolution_m=resolution_m,
        thermal=thermal,
    )


SENTINEL2_L2A = Sensor(
    name="sentinel2_l2a",
    title="Sentinel-2 L2A",
    units="surface reflectance x 10000, offset removed",
    bands=(
        _band("B02", 1188.9412572078477, 1859.1923971769581, 490, 10),
        _band("B03", 1407.7739105458452, 1727.7387413631088, 560, 10),
        _band("B04", 1513.0573882432757, 1740.7757298757895, 665, 10),
        _band("B08", 2755.481305028308, 1612.2565699990187, 842, 10),
        _band("B05", 1890.9893042634167, 1754.7320388511766, 705, 20),
        _band("B06", 2483.7812315422448, 1622.1172720635755, 740, 20),
        _band("B07", 2722.728248756412, 1621.8226170190276, 783, 20),
        _band("B8A", 2885.570263047681, 1611.3587521042082, 865, 20),
        _band("B11", 2562.852607796968, 1441.5471830655151, 1610, 20),
        _band("B12", 1914.1383249044113, 1328.8914382756407, 2190, 20),
        _band("B01", 1115.8494388252218, 1955.6991794280914, 443, 60),
        _band("B09", 3269.812554170875, 2651.088425085525, 945, 60),
    ),
    band_sets_v1=((0, 1, 2, 3), (4, 5, 6, 7, 8, 9), (10, 11)),
    aliases={
        **{f"B{n}": f"B0{n}" for n in range(1, 10)},
        "B08A": "B8A",
        "COASTAL": "B01",
        "BLUE": "B02",
        "GREEN": "B03",
        "RED": "B04",
        "REDEDGE1": "B05",
        "REDEDGE2": "B06",
        "REDEDGE3": "B07",
        "NIR": "B08",
        "NIR08": "B8A",
        "NIR09": "B09",
        "SWIR16": "B11",
        "SWIR22": "B12",
    },
)

SENTINEL1 = Sensor(
    name="sentinel1",
    title="Sentinel-1 RTC",
    units="gamma0 in decibels",
    bands=(
        _band("vv", -11.648990747328444, 10.840350299936597),
        _band("vh", -17.745436133270044, 10.216274681392647),
    ),
    band_sets_v1=((0, 1),),
)

LANDSAT = Sensor(
    name="landsat",
    title="Landsat 8/9 Collection 2 Level-1",
    units="Level-1 digital numbers",
    bands=(
        _band("B8", 10132.090998288624, 7788.7282476413675, 590, 15),
        _band("B1", 11000.959519415692, 7857.9205791510285, 443, 30),
        _band("B2", 10493.416292898208, 7872.392135393957, 482, 30),
        _band("B3", 10146.318478942761, 7676.2774595217115, 561, 30),
        _band("B4", 10236.446029167704, 8038.218121686258, 655, 30),
        _band("B5", 14427.021492873682, 9302.431605916356, 865, 30),
        _band("B6", 12164.08145353199, 7442.390533225441, 1609, 30),
        _band("B7", 9712.032951062303, 6037.712185433222, 2201, 30),
        _band("B9", 4585.469566989013, 2549.745355740949, 1373, 30),
        _band("B10", 21347.89356940543, 10957.2815012006, 10900, 30, thermal=True),
        _band("B11", 19686.23205859348, 9911.421224126807, 12000, 30, thermal=True),
    ),
    band_sets_v1=((0,), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
    aliases={f"B0{n}": f"B{n}" for n in range(1, 10)},
)

SENSORS: dict[str, Sensor] = {s.name: s for s in (SENTINEL2_L2A, SENTINEL1, LANDSAT)}
"""The sensors the encoders read, in the order of the released configurations."""

_WORLDCEREAL = (
    "tc-annual-temporarycrops",
    "tc-maize-main-irrigation",
    "tc-maize-main-maize",
    "tc-maize-second-irrigation",
    "tc-maize-second-maize",
    "tc-springcereals-springcereals",
    "tc-wintercereals-irrigation",
    "tc-wintercereals-wintercereals",
)

_OPENSTREETMAP = (
    "aerialway_pylon aerodrome airstrip amenity_fuel building chimney communications_tower crane "
    "flagpole fountain generator_wind helipad highway leisure lighthouse obelisk observatory "
    "parking petroleum_well power_plant power_substation power_tower river runway satellite_dish "
    "silo storage_tank taxiway water_tower works"
)

MAPS: dict[str, MapModality] = {
    m.name: m
    for m in (
        MapModality(name="worldcover", bands=("B1",)),
        MapModality(name="srtm", bands=("srtm",)),
        MapModality(name="openstreetmap_raster", bands=tuple(_OPENSTREETMAP.split())),
        MapModality(name="wri_canopy_height_map", bands=("B1",)),
        MapModality(name="cdl", bands=("cdl",)),
        MapModality(
            name="worldcereal", bands=tuple(f"{name}-classification" for name in _WORLDCEREAL)
        ),
    )
}
"""Maps that pretraining decodes, in the order of the released configurations."""


def sensor(name: str) -> Sensor:
    """The table of one sensor; raises InputError with the known names."""
    if name not in SENSORS:
        raise InputError(
            got=f"sensor {name!r}",
            expected=f"one of {', '.join(SENSORS)}",
            fix="pass sensor= one of these names",
        )
    return SENSORS[name]
