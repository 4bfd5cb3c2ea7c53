import pytest

from distill.data.members import base, samples, split_suffix


def keys(*names):
    return [(part.key, part.image, part.json, part.mask) for part in samples((name, name) for name in names)]


def test_a_sample_is_the_files_that_share_a_name():
    assert keys("a/1.json", "a/1.jpg", "a/1.mask.png", "b/1.PNG", "b/1.txt") == [
        ("a/1", "a/1.jpg", "a/1.json", "a/1.mask.png"),
        ("b/1", "b/1.PNG", None, None),
    ]


def test_keys_with_dots():
    assert keys("x.v1.jpg", "x.v1.json", "x.v2.jpg", "x.v2.json") == [
        ("x.v1", "x.v1.jpg", "x.v1.json", None),
        ("x.v2", "x.v2.jpg", "x.v2.json", None),
    ]


def test_other_columns_of_a_sample_are_no_samples():
    assert keys("x.depth.png", "x.jpg", "x.json", "x.meta.json") == [("x", "x.jpg", "x.json", None)]


def test_records_without_image_are_given_so_that_they_can_be_reported():
    assert keys("x.json", "y.jpg") == [("x", None, "x.json", None), ("y", "y.jpg", None, None)]


def test_hidden_files_belong_to_no_sample():
    assert keys("._a.jpg", "a/.DS_Store", "./a.jpg") == [("a", "./a.jpg", None, None)]


def test_the_first_of_two_images_counts():
    assert keys("a.jpg", "a.png", "a.json") == [("a", "a.jpg", "a.json", None)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.c.jpeg", ("a/b.c", "image")),
        ("a.mask.png", ("a", "mask")),
        ("a.npy", ("a.npy", "")),
        ("./k.webp", ("k", "image")),
    ],
)
def test_split_suffix(name, expected):
    assert split_suffix(name) == expected


def test_base_of_unicode_names():
    assert base("ordner/größe 猫.v2.jpg") == "ordner/größe 猫"
