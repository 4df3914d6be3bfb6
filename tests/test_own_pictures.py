"""Tests of layouts of one's own pictures: each picture is taken with its label, or its omission is said."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from pipelines import DataError, load_manifest
from pipelines.images.walk import counted
from pipelines.sharding.runners import ShardingProgress
from pipelines.sharding.sources import Source, find_images, official
from pipelines.sharding.sources.table import find_columns
from tests.conftest import assert_refused, script
from tests.test_sources import WORDS, devkit_of
from tools.shard_imagenet import Options

TOOL = "tools/shard_imagenet.py"
BOTH = ("train", "val")


def fill(folder: Path, *names: str) -> Path:
    """Write files, each with bytes of its own. ``a/{1,2}.jpg`` is not understood: give every name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def many(start: str, count: int, end: str = ".jpg") -> list[str]:
    return [f"{start}{number:03d}{end}" for number in range(count)]


def found(folder: Path, splits: tuple[str, ...] = BOTH, seed: int = 0, **options) -> Source:
    return find_images(folder, splits, seed, **options)


def taken(source: Source, split: str) -> dict[str, str]:
    """Return the class of each picture of a split, by its path."""
    return {sample.source: source.classes[sample.label].wnid for sample in source.splits[split]}


def said(source: Source) -> str:
    return "\n".join(source.notes)


# Class folders without splits


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return fill(tmp_path / "pets", *many("cat/", 40), *many("dog/d", 21), "owl/1.jpg")


def test_class_folders_are_divided_by_class_and_nothing_is_lost(pets: Path) -> None:
    source = found(pets)
    train, val = taken(source, "train"), taken(source, "val")
    assert not train.keys() & val.keys() and len(train) + len(val) == 62
    assert all(path.startswith(name) for path, name in (train | val).items())
    assert sorted(val.values()) == ["cat"] * 4 + ["dog"] * 2, "a tenth of each class; a single picture stays in train"
    assert "are taken as classes: 3 (cat, dog, owl)" in said(
        source
    ) and "val is 0.1 of the pictures of each class" in said(source)
    assert "classes with too few pictures to give one to val: 1 (owl)" in said(source)
    assert len(taken(found(pets, val_share=0.5), "val")) == 20 + 11


def test_the_division_depends_on_seed_and_names_alone(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = taken(found(pets), "val")
    assert taken(found(pets, seed=1), "val") != before
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            self.entries = scandir(path)

        def __enter__(self) -> Iterable[os.DirEntry]:
            return reversed(list(self.entries))

        def __exit__(self, *_: object) -> None:
            self.entries.close()

    monkeypatch.setattr(os, "scandir", Reversed)
    again = found(pets)
    assert taken(again, "val") == before and again.splits == found(pets).splits


def test_a_new_picture_moves_at_most_one_other(pets: Path) -> None:
    before = taken(found(pets), "val").keys()
    for number in range(12):
        fill(pets, f"cat/new{number}.jpg", f"emu/{number:03d}.jpg")
        after = taken(found(pets), "val").keys()
        old = {path for path in after if "new" not in path and "emu" not in path}
        assert len(old - before) <= 1 and len(before - after) <= 1
        before = after


def test_files_of_the_same_bytes_are_on_one_side(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", *many("a/", 20), *many("b/", 20))
    for number in range(10):
        shutil.copy(folder / f"a/{number:03d}.jpg", folder / f"a/copy{number}.jpg")
    shutil.copy(folder / "a/019.jpg", folder / "b/other.jpg")
    for seed in range(20):
        source = found(folder, seed=seed, val_share=0.3)
        val, train = ({(folder / path).read_bytes() for path in taken(source, split)} for split in ("val", "train"))
        assert not val & train
        assert len(source.splits["train"]) + len(source.splits["val"]) == 51
        assert "in several classes, kept in train: 2 pictures (a/019.jpg, b/other.jpg)" in said(source)


def test_one_split_takes_all_and_numbers_are_sorted_as_such(tmp_path: Path) -> None:
    """Check with folders as in ImageNetV2."""
    folder = fill(tmp_path / "v2", *(f"{number}/{number:x}.jpeg" for number in range(12)))
    source = found(folder, ("val",))
    assert {sample.source.partition("/")[0]: sample.label for sample in source.splits["val"]} == {
        str(number): number for number in range(12)
    }
    assert len(found(folder, ("train",)).splits["train"]) == 12
    with pytest.raises(DataError, match="--splits takes train val, or the one"):
        found(folder, ("train", "val", "test"))
    with pytest.raises(DataError, match="no class with two pictures"):
        found(folder)


def test_a_val_of_its_own_is_not_divided(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "train/a/1.jpg", "val/a/2.jpg")
    with pytest.raises(DataError, match="has a val of its own"):
        found(folder, val_share=0.2)
    for share in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="--val-share"):
            Options(folder, Path("out"), val_share=share)


# Names of splits


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "test"),
        ("train", "valid"),
        ("train", "validation"),
        ("Training", "Testing"),
        ("TRAIN", "Val"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set", "test_set"),
    ],
)
def test_other_names_of_splits_are_taken(tmp_path: Path, train: str, val: str) -> None:
    folder = fill(tmp_path / "in", *many(f"{train}/a/", 3), *many(f"{train}/b/", 3), *many(f"{val}/b/", 2))
    source = found(folder)
    assert [*source.splits] == ["train", "val"]
    assert taken(source, "train") == {path: path[-9] for path in (*many(f"{train}/a/", 3), *many(f"{train}/b/", 3))}
    assert taken(source, "val") == dict.fromkeys(many(f"{val}/b/", 2), "b")
    assert f"{val}/ is taken as val" in said(source)


def test_val_is_val_where_there_is_a_test_too(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "train/a/1.jpg", "val/a/2.jpg", "test/a/3.jpg", "test/a/4.jpg")
    source = found(folder)
    assert taken(source, "val") == {"val/a/2.jpg": "a"}
    assert "test/ is left out; --splits train val test takes it too" in said(source)
    assert counted(source.left_out) == "2 in test/"
    three = found(folder, ("train", "val", "test"))
    assert len(three.splits["test"]) == 2 and "left out" not in said(three)


def test_only_train_gives_a_share_to_val(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", *many("train/a/", 20), *many("test/x", 4))
    source = found(folder)
    assert len(source.splits["val"]) == 2 and len(source.splits["train"]) == 18
    assert "test/ is left out: it has none of the class folders of train/" in said(source)
    assert counted(source.left_out) == "4 in test/"
    fill(folder, *many("Test/a/", 3))
    shutil.rmtree(folder / "test")
    three = found(folder, ("train", "val", "test"))
    assert {split: len(samples) for split, samples in three.splits.items()} == {"train": 18, "val": 2, "test": 3}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", *(name for kind in ("car", "ship", "train") for name in many(f"{kind}/", 4)))
    assert [entry.wnid for entry in found(folder).classes] == ["car", "ship", "train"]


def test_two_folders_of_one_meaning_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "train_1/a/1.jpg", "train_2/a/1.jpg", "val/a/1.jpg")
    with pytest.raises(DataError, match=r"train_1/ and train_2/: call the one to take train/"):
        found(folder)


# What is left out


def test_sub_folders_are_walked_and_the_rest_is_counted(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "in",
        *("cat/1.jpg", "cat/more/1.jpg", "cat/more/deep/2.PNG", "cat/notes.txt", "cat/._1.jpg", "cat/Thumbs.db"),
        *("dog/1.jpg", "dog/2.jpg", "dog/@eaDir/1.jpg", "dog/.ipynb_checkpoints/2.jpg", "dog/README"),
        *("__MACOSX/cat/._1.jpg", "__MACOSX/cat/._2.jpg", ".git/x.jpg", "loose.jpg", "empty/a.txt"),
    )
    source = found(folder)
    assert {*taken(source, "train"), *taken(source, "val")} == {
        *("cat/1.jpg", "cat/more/1.jpg", "cat/more/deep/2.PNG", "dog/1.jpg", "dog/2.jpg")
    }
    assert [entry.wnid for entry in source.classes] == ["cat", "dog"]
    assert len({sample.key for samples in source.splits.values() for sample in samples}) == 5
    assert "class folders without pictures are left out: 1 (empty)" in said(source)
    assert counted(source.left_out) == (
        "2 .txt, 2 in __MACOSX/, 1 .db, 1 .jpg in no class folder, 1 hidden, 1 in .git/, 1 in .ipynb_checkpoints/, "
        "1 in @eaDir/, 1 without a suffix"
    )


def test_an_empty_class_that_val_has_pictures_of_is_an_error(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "train/a/1.jpg", "train/b/readme", "val/a/1.jpg", "val/b/1.jpg")
    with pytest.raises(DataError, match="val has images of b, a class that train does not have"):
        found(folder)
    (folder / "val/b/1.jpg").unlink()
    source = found(folder)
    assert [entry.wnid for entry in source.classes] == ["a"] and "left out: 1 (b)" in said(source)


def test_a_folder_of_images_is_no_class(tmp_path: Path) -> None:
    folder = fill(tmp_path / "yolo", *many("train/images/", 3), *many("train/labels/", 3, ".txt"), "val/images/9.jpg")
    with pytest.raises(DataError, match="train has no class folders"):
        found(folder)


def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "train/a/1.jpg", "val/a/1.jpg")
    (folder / "train/a/up").symlink_to(folder / "train/a")
    with pytest.raises(DataError, match="nested 30 deep"):
        found(folder)


# A table of labels


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_pictures_and_a_csv_as_in_dog_breeds(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", *many("train/", 10), *many("test/x", 3), "sample_submission.csv")
    file = table(folder, "id,breed\n" + "".join(f"{number:03d},{'ab'[number % 2]} dog\n" for number in range(10)))
    source = found(folder, labels=Path("labels.csv"))
    assert taken(source, "train") | taken(source, "val") == {
        f"train/{number:03d}.jpg": f"{'ab'[number % 2]} dog" for number in range(10)
    }
    assert len(source.splits["val"]) == 2
    assert f"{file}: the pictures are in its column 'id', the labels in 'breed'" in said(source)
    assert counted(source.left_out) == "3 pictures without a row in labels.csv, 1 .csv"
    with pytest.raises(DataError, match=r"13 pictures in 2 folders and 2 \.csv, in no layout.*--labels .*labels\.csv"):
        found(folder)


def test_a_column_of_splits_is_followed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "a/1.jpg", "b/1.jpg", "c/x.y.png", "d.jpg", "e.jpg")
    rows = "x;class;Split\n/kaggle/input/a/1.jpg;cat;Training\nb\\1.jpg;dog;train\nx.y;cat;valid\nd.jpg;dog;extra\n"
    file = table(tmp_path, "﻿Image Path" + rows[1:] + "e.jpg;;train\n", "own.csv")
    source = found(folder, labels=file)
    assert taken(source, "train") == {"a/1.jpg": "cat", "b/1.jpg": "dog"}
    assert taken(source, "val") == {"c/x.y.png": "cat"}
    assert "the splits in 'Split'" in said(source) and "rows of the split 'extra' are left out: 1" in said(source)
    assert source.left_out["rows of own.csv without a label"] == 1
    file.write_text(file.read_text().replace("valid", "test"))
    assert "the rows of test are taken as val" in said(found(folder, labels=file))
    with pytest.raises(DataError, match="has the splits extra, test, train, but no holdout"):
        found(folder, ("train", "holdout"), labels=file)


def test_a_column_that_names_no_split_is_none(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "1.jpg", "2.jpg")
    file = table(tmp_path, "lesion_id,image_id,dx,age,dataset\nL,1,mel,20,vidir\nM,2,mel,30,rosendahl\n")
    assert {split: len(samples) for split, samples in found(folder, labels=file).splits.items()} == {
        "train": 1,
        "val": 1,
    }


def test_a_repeated_row_is_counted_and_not_taken_into_two_splits(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "1.jpg", "2.jpg", "3.jpg")
    file = table(tmp_path, "file,label,set\n1.jpg,a,train\n2.jpg,a,train\n3.jpg,a,val\n1,a,train\n")
    source = found(folder, labels=file)
    assert {*taken(source, "train")} == {"1.jpg", "2.jpg"}
    assert counted(source.left_out) == "1 repeated rows in labels.csv"
    file.write_text(file.read_text() + "2,a,val\n")
    with pytest.raises(DataError, match="line 6: 2 is in another split in line 3"):
        found(folder, labels=file)


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("filename,label", (0, 1, None)),
        ("label,image_id", (1, 0, None)),
        ("id,breed", (0, 1, None)),
        ("Image Name,Plant,set", (0, 1, 2)),
        ("what,category", (0, 1, None)),
        ("class,width,height,path,Usage", (3, 0, 4)),
        ("image,MEL,NV", None),
        ("1.jpg,cat", None),
    ],
)
def test_columns_are_found_by_name(header: str, columns: tuple | None) -> None:
    assert find_columns(header.split(",")) == columns


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            "filename,label\n1.jpg,a\n7.jpg,a\n8.jpg,b\n",
            r"2 of the 3 pictures.* not below .*; the first, in line 3: '7",
        ),
        ("filename,label\n1.jpg,a\n1.jpg,b\n", r"line 3: x/1\.jpg is 'b', but 'a' in line 2"),
        ("filename,label\n2.jpg,a\n", r"line 2: '2\.jpg' may be x/2\.jpg or y/2\.jpg: write the path"),
        ("filename,label\n../../etc/passwd,a\n", "are not below"),
        ("filename,label\n,a\n", "line 2: the column 'filename' is empty"),
        ("one,two,three\n1.jpg,a,b\n", "has the columns one, two, three: its first line must name"),
        ("filename,label\n", "has no rows with a label"),
        ("filename,label\n1.jpg,a,b\n", "line 2: 3 cells for 2 columns"),
        ("", "of an empty file"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, rows: str, words: str) -> None:
    folder = fill(tmp_path / "in", "x/1.jpg", "x/2.jpg", "y/2.jpg")
    with pytest.raises(DataError, match=words):
        found(folder, labels=table(folder, rows))
    with pytest.raises(DataError, match="no such file"):
        found(folder, labels=Path("none.csv"))


# Labels in text files, and subsets by name


def test_tiny_imagenet_is_taken_as_it_ships(tmp_path: Path) -> None:
    wnids = ["n01443537", "n02084071"]
    folder = fill(tmp_path / "tiny", *(f"test/images/test_{number}.JPEG" for number in range(3)))
    for wnid in wnids:
        fill(folder, *many(f"train/{wnid}/images/{wnid}_", 4, ".JPEG"), f"train/{wnid}/{wnid}_boxes.txt")
    fill(folder, *many("val/images/val_", 4, ".JPEG"))
    lines = [f"val_{number:03d}.JPEG\t{wnids[number % 2]}\t0\t0\t9\t9\n" for number in range(4)]
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(wnids))
    (folder / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()))
    source = found(folder)
    assert len(source.splits["train"]) == 8
    assert [entry.name for entry in source.classes] == ["goldfish", "dog"]
    assert taken(source, "val") == {f"val/images/val_{number:03d}.JPEG": wnids[number % 2] for number in range(4)}
    assert counted(source.left_out) == "3 in test/, 2 .txt"


def flat(tmp_path: Path) -> Path:
    folder = fill(tmp_path / "in", *many("train/n01443537/t", 3), *many("train/n02084071/t", 3))
    return fill(folder, *many("val/v", 3, ".JPEG"))


@pytest.mark.parametrize(
    "text",
    [
        "v000.JPEG n02084071\nv001.JPEG n01443537\nv002.JPEG n02084071\n",
        "v002.JPEG 1\nv001.JPEG 0\nv000.JPEG 1\n",
        "val/v000\tn02084071\nval/v001\tn01443537\nval/v002\tn02084071\n",
    ],
)
def test_a_flat_val_has_its_labels_in_a_text_file(tmp_path: Path, text: str) -> None:
    folder = flat(tmp_path)
    with pytest.raises(DataError, match=r"val has no class folders.* or a file of labels, .*val\.txt"):
        found(folder)
    (folder / "val.txt").write_text(text)
    classes = {"val/v000.JPEG": "n02084071", "val/v001.JPEG": "n01443537", "val/v002.JPEG": "n02084071"}
    source = found(folder)
    assert taken(source, "val") == classes and not source.left_out
    assert ("the numbers in" in said(source)) == (" 1\n" in text)
    (folder / "val.txt").write_text(text.replace("n01443537", "emu").replace("0\n", "2\n"))
    with pytest.raises(DataError, match=r"the label '(emu|2)' is none of the 2 classes"):
        found(folder)


def test_imagenets_ground_truth_goes_by_the_devkits_numbers(tmp_path: Path) -> None:
    folder = flat(tmp_path)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n3\n")
    with pytest.raises(DataError, match="put ILSVRC2012_devkit_t12"):
        found(folder)
    (folder / official.DEVKIT).write_bytes(devkit_of(["n02084071", "n01443537", "n02084071"]))
    assert [*taken(found(folder, layout="folders"), "val").values()] == ["n02084071", "n01443537", "n02084071"]


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ("golden retriever\n\nlabrador\n", ["golden retriever", "labrador"]),
        ("Golden_Retriever\n", ["golden retriever"]),
        ("n01440764 tench\n", ["n01440764"]),
        ("tinca tinca\nlabrador\n", ["labrador", "n01440764"]),
    ],
)
def test_classes_are_chosen_by_name(tmp_path: Path, lines: str, labels: list[str]) -> None:
    names = ("golden retriever", "labrador", "golden", "n01440764", "n02012849", "n03126707")
    folder = fill(tmp_path / "in", *(path for name in names for path in many(f"{name}/", 2)))
    words = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"
    (folder / "synset_words.txt").write_text(words)
    (tmp_path / "chosen").write_text(lines)
    assert [entry.wnid for entry in found(folder, classes=str(tmp_path / "chosen")).classes] == labels
    (tmp_path / "chosen").write_text("crane\n")
    with pytest.raises(DataError, match="'crane' may be n02012849 and n03126707"):
        found(folder, classes=str(tmp_path / "chosen"))
    (tmp_path / "chosen").write_text("golden labrador retriever\n")
    assert found(folder, classes=str(tmp_path / "chosen")).classes[0].wnid == "golden"


# Folders that are not understood, and the command


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["my set/train/a/1.jpg", "my set/val/a/1.jpg"], "2 pictures in 2 folders, .*'.*/my set' 'my out'"),
        (
            ["x/y/a/1.jpg", "x/y/b/1.jpg", "x.csv"],
            r"and 1 \.csv, .* the layout classes: .*python .*/x/y' 'my out'",
        ),
        (["1.jpg", "2.jpg"], "2 pictures in 1 folder, .* a picture's class is the name of its folder"),
        (["train/1.jpg", "test/2.jpg"], "2 pictures in 2 folders, .* a picture's class is the name of its folder"),
        (["a.zip", "b.zip"], r"holds 2 \.zip, .* unpack the archives first"),
        ([], "holds no files, .*looked for"),
    ],
)
def test_what_is_not_understood_is_described(tmp_path: Path, names: list[str], words: str) -> None:
    folder = fill(tmp_path / "in it", *names)
    folder.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=words) as refused:
        found(folder, out=Path("my out"))
    assert "\n" not in str(refused.value)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(8):
        path = tmp_path / "in" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number * 30, 0, 0)).save(path)
    (tmp_path / "in/cat/why.txt").touch()
    return tmp_path / "in"


def test_the_command_is_repeated_without_harm(pictures: Path, tmp_path: Path) -> None:
    line = (TOOL, pictures, tmp_path / "out", "--size", "32", "--workers", "1")
    done = script(*line)
    assert done.returncode == 0, done.stderr
    assert "val is 0.1 of the pictures of each class, drawn with seed 0" in done.stdout
    assert "left out: 1 .txt" in done.stdout.splitlines()[-1]
    assert {name: split.samples for name, split in load_manifest(tmp_path / "out").splits.items()} == {
        "train": 6,
        "val": 2,
    }
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = script(*line)
    assert again.returncode == 0, again.stderr
    assert f"{tmp_path / 'out'} is finished already: 6 train images, 2 val images of 2 classes" in again.stdout
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert_refused(script(*line, "--quality", "80"), "finished shards of another plan", "quality", "80")
    assert_refused(script(*line, "--val-share", "0.5"), "finished shards of another plan", "the list of images")
    plan = (tmp_path / "out/plan.json").read_bytes()
    (tmp_path / "out/plan.json").unlink()
    assert_refused(script(*line), "holds finished shards already", "earlier version")
    (tmp_path / "out/plan.json").write_bytes(plan)
    os.truncate(tmp_path / "out/val-000000.tar", 5000)
    assert_refused(script(*line), "val-000000.tar has 5000 bytes instead of", "--repair")


def test_a_handful_may_be_bad_and_the_message_holds_the_share_to_type() -> None:
    def bad(total: int, count: int, share: float = 0.001) -> None:
        progress = ShardingProgress(total, 0, share)
        for number in range(count):
            progress.quarantine({"source": f"{number}.jpg", "reason": "it is empty"})

    bad(121, 5)
    bad(6, 3)
    bad(100_000, 100)
    bad(4, 4, 1.0)
    for total, count, share, wanted in ((121, 6, 0.001, "0.1"), (6, 4, 0.001, "1"), (10, 1, 0, "0.2")):
        with pytest.raises(DataError, match=rf"more than {count - 1} of {total} .* --max-bad {wanted}\. The first"):
            bad(total, count, share)
