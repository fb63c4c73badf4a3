import os

from bocage.contents import contents_of


def test_the_hash_follows_size_and_time_of_each_file(tmp_path):
    folder = tmp_path / "scene"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        (folder / name).write_bytes(b"1234")
        os.utime(folder / name, ns=(0, 10**9))
    before = contents_of([folder])
    assert before and before == contents_of([str(folder)])
    os.utime(folder / "b.tif", ns=(0, 10**9 + 1))
    later = contents_of([folder])
    os.utime(folder / "b.tif", ns=(0, 10**9))
    assert contents_of([folder]) == before != later
    (folder / "c.tif").write_bytes(b"")
    assert contents_of([folder]) != before
    assert contents_of([folder / "a.tif"]) != contents_of([folder / "b.tif"])


def test_what_is_no_local_file_is_passed_over():
    sources = ["https://host/a.tif", "/vsizip/x.zip/a.tif", "an item", "<VRTDataset>" + "x" * 5000]
    assert contents_of(sources) == ""
