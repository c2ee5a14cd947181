"""What a folder is: one answer for the viewer, PACS, evaluation and `info`."""

from slicewise.io.folders import MANIFEST, RECORD, WEIGHTS, generated_series, is_store, is_training


def test_each_kind_of_folder_is_known_by_a_file_of_its_own(tmp_path):
    for name, file in (("store", MANIFEST), ("volumes", RECORD), ("run", WEIGHTS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    folders = sorted(tmp_path.iterdir())
    assert [f.name for f in folders if is_store(f)] == ["store"]
    assert [f.name for f in folders if is_training(f)] == ["run"]
    assert not [f for f in folders if generated_series(f)], "nothing is made yet, or the file is a stranger's"
    (tmp_path / "volumes" / "dicom").mkdir()
    assert [generated_series(str(f)) for f in folders if generated_series(f)] == [tmp_path / "volumes" / "dicom"]
    assert not is_store(tmp_path / "nothing")
    assert generated_series(tmp_path / "store" / MANIFEST) is None
