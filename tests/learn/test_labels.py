import geopandas
import numpy as np
import pyogrio
import pytest
import shapely

from bocage.errors import BocageWarning, ConfigError, InputError, SourceError
from bocage.learn.classes import LabelClass, make_classes, read_classes
from bocage.learn.labels import read_labels

from .conftest import CRS, frame


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.parquet", "a.shp"])
def test_every_format_gives_the_same_labels(tmp_path, name):
    table = frame(50)
    if name.endswith("parquet"):
        table.to_parquet(tmp_path / name)
    else:
        (table.to_crs(4326) if name.endswith("geojson") else table).to_file(tmp_path / name)
    labels = read_labels(tmp_path / name, column="class")
    assert [c.name for c in labels.classes] == ["land", "water"]
    assert [c.value for c in labels.classes] == [1, 2]
    assert (np.array(["land", "water"])[labels.value] == table["class"]).all()
    moved = geopandas.GeoSeries(labels.geometry, crs=labels.crs).to_crs(CRS)
    assert moved.distance(table.geometry, align=False).max() < 0.2
    assert "land" in labels.describe() and "water" in labels.describe()


def test_the_one_column_of_a_file_needs_no_name(tmp_path):
    frame(20, year=2024).to_file(tmp_path / "a.gpkg")
    labels = read_labels(tmp_path / "a.gpkg")
    assert labels.target == "class" and set(labels.year) == {2024}
    frame(20, other=1).to_file(tmp_path / "b.gpkg")
    with pytest.raises(ConfigError, match="class, other"):
        read_labels(tmp_path / "b.gpkg")
    with pytest.raises(InputError, match=r"without the column klass.*class, other"):
        read_labels(tmp_path / "b.gpkg", column="klass")


def test_whole_numbers_are_classes_of_that_value_and_others_are_numbers(tmp_path):
    frame(20, code=np.tile([7, 40], 10), height=np.linspace(0, 3.3, 20)).to_file(
        tmp_path / "a.gpkg"
    )
    codes = read_labels(tmp_path / "a.gpkg", column="code")
    assert [(c.value, c.name) for c in codes.classes] == [(7, "7"), (40, "40")]
    heights = read_labels(tmp_path / "a.gpkg", column="height")
    assert heights.task == "regression" and heights.value[-1] == pytest.approx(3.3)
    assert read_labels(tmp_path / "a.gpkg", column="code", task="regression").task == "regression"
    frame(200, id2=np.arange(200)).to_file(tmp_path / "b.gpkg")
    with pytest.raises(ConfigError, match="200 distinct whole numbers"):
        read_labels(tmp_path / "b.gpkg", column="id2")


def test_several_columns_are_labels_that_hold_together(tmp_path):
    flags = np.random.default_rng(0).integers(0, 2, (20, 2))
    frame(20, wet=flags[:, 0], tall=flags[:, 1]).to_file(tmp_path / "a.gpkg")
    labels = read_labels(tmp_path / "a.gpkg", column=["wet", "tall"])
    assert labels.task == "multilabel" and [c.name for c in labels.classes] == ["wet", "tall"]
    assert (labels.value == flags).all()
    frame(20, wet=2, tall=1).to_file(tmp_path / "b.gpkg")
    with pytest.raises(InputError, match="more than 0 and 1"):
        read_labels(tmp_path / "b.gpkg", column=["wet", "tall"])


def test_years_come_from_years_and_from_dates(tmp_path):
    dates = ["2023-05-01", "2024-12-31"] * 10
    frame(20, date=dates, when=[2021] * 20).to_file(tmp_path / "a.gpkg")
    labels = read_labels(tmp_path / "a.gpkg", column="class")
    assert set(labels.year) == {2023, 2024}
    labels = read_labels(tmp_path / "a.gpkg", column="class", date_column="when")
    assert set(labels.year) == {2021}
    frame(20, date=["soon"] * 20).to_file(tmp_path / "b.gpkg")
    with pytest.raises(InputError, match=r"20 values of 'date'.*'soon'"):
        read_labels(tmp_path / "b.gpkg", column="class")


def test_files_in_two_crs_become_one(tmp_path):
    table = frame(40)
    table[:20].to_file(tmp_path / "a.gpkg")
    table[20:].to_crs(4326).to_file(tmp_path / "b.gpkg")
    labels = read_labels([tmp_path / "a.gpkg", tmp_path / "b.gpkg"], column="class")
    both = geopandas.GeoSeries(labels.geometry, crs=labels.crs)
    assert both.distance(table.geometry.reset_index(drop=True), align=False).max() < 0.01


def test_class_names_that_differ_between_files_are_refused(tmp_path):
    table = frame(40)
    table[:20].to_file(tmp_path / "a.gpkg")
    other = table[20:].copy()
    other["class"] = other["class"].str.replace("water", "Water")
    other.to_file(tmp_path / "b.gpkg")
    with pytest.raises(InputError, match=r"a\.gpkg without the class Water of the other files"):
        read_labels([tmp_path / "a.gpkg", tmp_path / "b.gpkg"], column="class")
    # One file per class is fine once all classes are named.
    for name in ("land", "water"):
        table[table["class"] == name].to_file(tmp_path / f"{name}.gpkg")
    files = [tmp_path / "land.gpkg", tmp_path / "water.gpkg"]
    labels = read_labels(files, column="class", classes=["land", "water"])
    assert (
        np.bincount(labels.value).tolist()
        == table["class"].value_counts()[["land", "water"]].tolist()
    )
    with pytest.raises(InputError, match="class water in land"):
        read_labels(files, column="class", classes=["land", "sea"])


def test_a_table_of_classes_gives_values_names_and_colors(tmp_path):
    frame(30).to_file(tmp_path / "a.gpkg")
    (tmp_path / "c.csv").write_text("value,name,color\n5,water,#0000ff\n9,land,\n")
    labels = read_labels(tmp_path / "a.gpkg", column="class", classes=tmp_path / "c.csv")
    assert [(c.value, c.name) for c in labels.classes] == [(5, "water"), (9, "land")]
    assert labels.classes[0].rgb == (0, 0, 255)
    (tmp_path / "excel.csv").write_text(
        "value;name;color\n5;water;#0000ff\n9;land;\n", encoding="utf-8-sig", newline="\r\n"
    )
    assert read_classes(tmp_path / "excel.csv") == read_classes(tmp_path / "c.csv")
    (tmp_path / "c.json").write_text('[{"value": 5, "name": "water", "color": "blue"}]')
    with pytest.raises(InputError, match="color 'blue'"):
        read_classes(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(SourceError, match="class table"):
        read_classes(tmp_path / "c.json")
    with pytest.raises(InputError, match="share the value 5"):
        read_labels(
            tmp_path / "a.gpkg",
            column="class",
            classes=[LabelClass(value=5, name=n, color="#000000") for n in ("land", "water")],
        )


def test_colors_differ_between_the_first_classes():
    assert len({c.color for c in make_classes([str(i) for i in range(16)])}) == 16


def bad_no_crs(table):
    return table.set_crs(None, allow_override=True)


def bad_nan(table):
    table["class"] = table["class"].where(np.arange(len(table)) > 3)
    return table


def bad_one_class(table):
    return table[table["class"] == "land"]


def bad_empty_polygons(table):
    shapes = np.array(table.geometry.buffer(50))
    shapes[2], shapes[4] = shapely.Polygon(), shapely.Polygon([(0, 0), (1, 1), (0, 0)])
    return table.set_geometry(geopandas.GeoSeries(shapes, crs=CRS))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (bad_no_crs, "a.parquet without a CRS.*ogr2ogr"),
        (bad_nan, "4 of 30 values of 'class' missing"),
        (bad_one_class, "only the class 'land' in a.parquet"),
        (bad_empty_polygons, "2 of 30 shapes empty .rows 2, 4."),
        (lambda t: t[:0], "without a single shape"),
    ],
)
def test_bad_label_files_are_refused_in_one_sentence(tmp_path, spoil, message):
    spoil(frame(30)).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / "a.parquet", column="class")


def test_numbers_that_are_nan_are_refused_with_the_count(tmp_path):
    heights = np.linspace(0, 3.3, 30)
    heights[[3, 8]] = np.nan
    frame(30, height=heights).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="2 of 30 values of 'height' missing"):
        read_labels(tmp_path / "a.parquet", column="height")
    heights[3:9] = np.inf
    frame(30, height=heights).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="6 of 30 values of 'height' not finite"):
        read_labels(tmp_path / "a.parquet", column="height")


def test_two_columns_of_numbers_are_one_probe_each(tmp_path):
    table = frame(20).assign(height=1.5, depth=2.5)
    table.to_file(tmp_path / "a.gpkg")
    with pytest.raises(ConfigError, match=r"height, depth; expected one column.*--label height"):
        read_labels(tmp_path / "a.gpkg", column=["height", "depth"], task="regression")


def test_files_that_are_no_labels_are_refused(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        read_labels(tmp_path / "a.gpkg")
    for name in ("a.gpkg", "a.geojson", "a.parquet"):
        (tmp_path / name).write_text("no labels here")
        with pytest.raises(SourceError, match=name):
            read_labels(tmp_path / name)


def test_polygons_that_cross_themselves_are_repaired_and_told(tmp_path):
    bow = shapely.Polygon([(0, 0), (100, 100), (100, 0), (0, 100)])
    table = geopandas.GeoDataFrame(
        {"class": ["a", "b"]}, geometry=[bow, shapely.box(200, 0, 300, 100)], crs=CRS
    )
    table.to_file(tmp_path / "a.gpkg")
    with pytest.warns(BocageWarning, match="1 polygons cross themselves"):
        labels = read_labels(tmp_path / "a.gpkg", column="class")
    assert shapely.is_valid(labels.geometry).all()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("name,class,Lon,Lat\na,Grünland,9.5,48.1\nb,water,9.25,48.2\n", "utf-8"),
        ("class;latitude;longitude\nGrünland;48.1;9.5\nwater;48.2;9.25\n", "utf-8-sig"),
        ("class;LAT;LON\r\nGrünland;48,1;9,5\r\nwater;48,2;9,25\r\n", "utf-8"),
    ],
)
def test_a_table_with_longitude_and_latitude_holds_points(tmp_path, text, encoding):
    (tmp_path / "a.csv").write_text(text, encoding=encoding)
    labels = read_labels(tmp_path / "a.csv", column="class")
    assert labels.crs == "EPSG:4326"
    assert [(p.x, p.y) for p in labels.geometry] == [(9.5, 48.1), (9.25, 48.2)]
    assert [labels.classes[i].name for i in labels.value] == ["Grünland", "water"]


def test_tables_whose_places_are_unclear_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("class,x,y\nwater,500000,4500000\nland,1,2\n")
    with pytest.raises(InputError, match=r"columns class, x, y; expected longitude and latitude"):
        read_labels(tmp_path / "a.csv", column="class")
    (tmp_path / "b.csv").write_text("class,lon,lat\nwater,500000,4500000\nland,1,2\n")
    with pytest.raises(InputError, match=r"1 of 2 places .*lon 500000.* lat 4500000"):
        read_labels(tmp_path / "b.csv", column="class")
    (tmp_path / "latin.csv").write_text("class,lon,lat\nGrünland,9,48\n", encoding="latin-1")
    with pytest.raises(SourceError, match=r"latin\.csv, which is not in UTF-8"):
        read_labels(tmp_path / "latin.csv", column="class")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(SourceError, match=r"empty\.csv .No columns"):
        read_labels(tmp_path / "empty.csv", column="class")
    (tmp_path / "one.csv").write_text("a\nb\nc\n")
    with pytest.raises(InputError, match=r"one\.csv with the columns a; expected longitude"):
        read_labels(tmp_path / "one.csv", column="class")
    table = frame(10).drop(columns="geometry")
    pyogrio.write_dataframe(table, tmp_path / "c.gpkg")
    with pytest.raises(InputError, match=r"c\.gpkg, a table without shapes"):
        read_labels(tmp_path / "c.gpkg", column="class")


def test_spaces_make_no_class_of_their_own_and_capitals_are_told(tmp_path):
    table = frame(12)
    table["class"] = np.tile(["wald", "wald ", "  dry\nland", "dry land"], 3)
    table.to_file(tmp_path / "a.gpkg")
    labels = read_labels(tmp_path / "a.gpkg", column="class")
    assert [c.name for c in labels.classes] == ["dry land", "wald"]
    assert [c.value for c in labels.classes] == [1, 2]
    assert (labels.value == np.tile([1, 1, 0, 0], 3)).all()
    table["class"] = np.tile(["wald", "Wald"], 6)
    table.to_file(tmp_path / "b.gpkg")
    with pytest.warns(BocageWarning, match="Wald and wald differ in capital letters only"):
        assert len(read_labels(tmp_path / "b.gpkg", column="class").classes) == 2


def test_empty_texts_are_missing_values(tmp_path):
    table = frame(12)
    table["class"] = np.tile(["", "water", " ", "land"], 3)
    table.to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match="6 of 12 values of 'class' missing"):
        read_labels(tmp_path / "a.gpkg", column="class")
