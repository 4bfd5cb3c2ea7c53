"""Official TIPS files: parity with the official encoders, recognition, optional parts, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import distill
from distill.errors import UserError
from distill.models import official as official_map
from distill.models import official_variants
from distill.models.pair import ImageTextModel
from distill.models.sources import describe, open_model

CLOSE = 1e-4  # the most that a fp32 output may differ from the official encoder's

# every variant's architecture, small: heads of 64 and of 72 channels, an odd MLP, SwiGLU, both position grids
VARIANTS = {
    "S v1": {"width": 128, "depth": 2, "heads": 2, "mlp": 512, "grid": 16, "text_mlp": 512},
    "B v2": {"width": 192, "depth": 2, "heads": 3, "mlp": 768, "grid": 32, "text_mlp": 768},
    "So400m v2": {"width": 144, "depth": 3, "heads": 2, "mlp": 538, "grid": 32, "text_layers": 3, "text_mlp": 538},
    "g v1": {"width": 128, "depth": 2, "heads": 2, "mlp": 344, "grid": 16, "swiglu": True, "text_mlp": 512},
    "g v2": {"width": 128, "depth": 2, "heads": 2, "mlp": 344, "grid": 32, "swiglu": True, "text_mlp": 512},
}


@pytest.fixture
def files(official, save, tokenizer_file, monkeypatch):
    """`files(variant, layout) -> (source string, reference)`."""
    monkeypatch.setitem(official_variants.SIZES, 144, ("So400m", 2))  # the PyTorch layout does not say how many heads

    def make(variant: str = "B v2", layout: str = "torch"):
        shape = official.Shape(**VARIANTS[variant])
        vision = getattr(official, f"{layout}_vision")(shape)
        text = getattr(official, f"{layout}_text")(shape)
        source = f"tips:{save('vision', vision)}+{save('text', text)}+{tokenizer_file}"
        return source, official.Reference(shape, layout, vision, text)

    return make


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("layout", ["torch", "jax"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_images_and_texts_are_encoded_as_officially(files, variant, layout):
    source, reference = files(variant, layout)
    model = distill.load(source)
    assert isinstance(model, ImageTextModel)
    assert not model.training
    torch.manual_seed(0)
    for size in ((112, 84), (50, 71)):
        images = torch.rand(2, 3, *size)
        cls, final, values = model.encode_dense(images)
        first, second, patches, value_patches = reference.vision(images)
        assert worst(cls[:, 0], first) <= CLOSE
        assert worst(cls[:, 1], second) <= CLOSE
        assert worst(final.flatten(1, 2), patches) <= CLOSE
        assert worst(values.flatten(1, 2), value_patches) <= CLOSE
    texts = ["A red disc", "a blue square on a green field on a wall"]
    ids, valid, _ = model.tokenizer.encode(texts, 64)
    expected = reference.text(torch.from_numpy(ids), torch.from_numpy(valid))
    assert worst(model.encode_text(texts), expected) <= CLOSE


@pytest.mark.parametrize("size", [(224, 224), (252, 238)])  # the grid as it is, and a larger one
def test_positions_at_and_above_their_grid(files, size):
    source, reference = files("S v1")
    images = torch.rand(1, 3, *size)
    assert worst(distill.load(source).encode_image(images)[1].flatten(1, 2), reference.vision(images)[2]) <= CLOSE


def test_tokens_are_lower_cased_and_cut_at_64(files):
    model = distill.load(files()[0])
    assert model.text.context == 64
    assert torch.equal(model.encode_text(["A RED DISC"]), model.encode_text(["a red disc"]))
    assert model.tokenizer.encode(["red " * 100], 64).cut == 1


@pytest.mark.parametrize(("layout", "temperature"), [("torch", 0.0051), ("jax", 0.0036)])
def test_the_temperature_is_the_files(files, layout, temperature):
    assert distill.load(files(layout=layout)[0]).temperature.item() == pytest.approx(temperature, rel=1e-5)


def test_facts_are_the_models(files):
    source, _ = files("g v2")
    facts = describe(source)
    opened = open_model(source)
    assert facts == opened.facts
    assert facts.parameters == sum(p.numel() for p in opened.model.parameters()) - 1  # without the temperature
    assert (facts.cls_tokens, facts.registers, facts.position_grid, facts.image_size) == (2, 0, (32, 32), 448)
    line = facts.line()
    for part in (facts.sha256[:12], "no normalisation", "2 CLS + patches of 14 px", "32x32", "licence unknown"):
        assert part in line


def test_only_a_released_model_has_the_released_licence(files, monkeypatch):
    source, _ = files("g v2")
    monkeypatch.setattr(official_variants, "variant", lambda arch, grid: "TIPSv2 g/14")
    assert describe(source).licence == "CC-BY-4.0"


def test_the_models_saved_spec_rebuilds_it(files):
    source, _ = files()
    model = distill.load(source)
    again = ImageTextModel.from_spec(model.spec())
    again.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 50, 50)
    assert torch.equal(again.eval().encode_image(images)[0], model.encode_image(images)[0])
    assert torch.equal(again.encode_text(["a red disc"]), model.encode_text(["a red disc"]))


@pytest.mark.parametrize("layout", ["torch", "jax"])
@pytest.mark.parametrize("variant", ["S v1", "g v2"])
def test_writing_gives_the_official_layout_and_reads_back_bit_for_bit(files, save, variant, layout):
    source, reference = files(variant, layout)
    model = distill.load(source)
    vision = official_map.to_official(model.image, layout)
    assert {name: tuple(value.shape) for name, value in vision.items()} == {
        name: tuple(value.shape) for name, value in reference.v.items()
    }
    text = official_map.to_official(model.text, layout)
    assert text.keys() | {official_map.TEMPERATURE[layout]} == reference.t.keys()
    again = distill.load(f"tips:{save('again', {name: value.numpy() for name, value in vision.items()})}")
    for name, value in model.image.state_dict().items():
        assert torch.equal(again.image.state_dict()[name], value), name


def test_the_text_file_and_the_tokenizer_can_be_left_out(files):
    source, _ = files()
    vision, text, _ = source.removeprefix("tips:").split("+")
    alone = distill.load(f"tips:{vision}")
    assert alone.encode_text is None
    assert alone.encode_image(torch.rand(1, 3, 56, 56))[1].shape == (1, 4, 4, 192)
    assert "no text tower: add +TEXT.npz" in describe(f"tips:{vision}").line()
    assert "no tokenizer: add +TOKENIZER.model" in describe(f"tips:{vision}+{text}").line()
    assert distill.load(f"tips:{vision}+{text}").encode_text is None


def test_released_sizes_are_recognised(official):
    shapes = {
        "patch_embed.proj.weight": (1536, 3, 14, 14), "pos_embed": (1, 1025, 1536), "register_tokens": (1, 1, 1536),
        "blocks.0.mlp.w3.weight": (1536, 4096), **{f"blocks.{i}.norm1.weight": (1536,) for i in range(40)},
    }  # fmt: skip
    tower = official_variants.vision_tower(shapes, "torch")
    assert (tower.arch.name, tower.arch.heads, tower.depth) == ("g/14", 24, 40)
    assert sum(p.numel() for p in tower.parameters()) / 1e6 == pytest.approx(1135.8, abs=0.1)  # the paper, table 16
    assert official_variants.variant(tower.arch, 32) == "TIPSv2 g/14"
    assert official_variants.variant(tower.arch, 16) == "TIPS g/14"
    assert official_variants.variant(tower.arch, 37) is None


def test_damaged_and_other_files_are_one_clear_error(files, official, save, tmp_path):
    source, reference = files()
    vision, text, tokenizer = source.removeprefix("tips:").split("+")
    whole = (tmp_path / "vision.npz").read_bytes()
    good = {name: value.numpy() for name, value in reference.v.items()}

    def refused(match: str, *parts) -> None:
        with pytest.raises(UserError, match=match):
            open_model("tips:" + "+".join(map(str, parts)))

    refused(r"No file at .*absent\.npz", tmp_path / "absent.npz")
    for share in (0.0, 0.4, 0.999):
        (tmp_path / "short.npz").write_bytes(whole[: int(len(whole) * share)])
        refused(r"Cannot read .*short\.npz: it is truncated, damaged or no npz", tmp_path / "short.npz")
    bad = {**good, "blocks.1.ls1.gamma": good["blocks.1.ls1.gamma"].copy(), "norm.bias": good["norm.bias"] * np.inf}
    bad["blocks.1.ls1.gamma"][3] = np.nan
    refused(r"holds NaN or infinite values in blocks\.1\.ls1\.gamma, norm\.bias", save("nan", bad))
    refused(
        r"does not fit .*: blocks\.0\.norm2\.weight is missing; norm\.bias is 7, not 192; extra is not part of it",
        save("odd", {k: v for k, v in good.items() if k != "blocks.0.norm2.weight"}
             | {"norm.bias": np.zeros(7, np.float32), "extra": np.zeros(2, np.float32)}),
    )  # fmt: skip
    refused(r"is not a TIPS file: it holds weights", save("other", {"weights": np.zeros(3)}))
    refused(r"holds object, not numbers", save("pickled", {"x": np.array([{"a": 1}], dtype=object)}))
    refused(r"has no image tower", text)
    refused(r"are both vision files", vision, vision)
    other = official.torch_text(official.Shape(**VARIANTS["S v1"]))
    refused(r"width 192\), but .* has width 128 .*one variant", vision, save("small", other), tokenizer)
    refused(r"No tokenizer file at", vision, text, tmp_path / "absent.model")
    (tmp_path / "no.model").write_bytes(b"nothing")
    refused(r"Not a SentencePiece model", vision, text, tmp_path / "no.model")


def test_nothing_in_a_file_is_run(save, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with pytest.raises(UserError, match="not numbers"):
        open_model(f"tips:{save('trap', {'cls_token': np.array([Trap()], dtype=object)})}")
    assert not (tmp_path / "ran").exists()
