"""The protocol of a model, and how model files are found and loaded."""

import hashlib
from pathlib import Path

import pytest

from bayes_sched.errors import InputError
from bayes_sched.model.protocol import (
    LatencyModel,
    all_parameters,
    load_model,
    load_model_file,
    models_folder,
    shipped_models,
)

SHIPPED = models_folder() / "saturation.py"


def test_saturation_is_shipped_and_fulfils_the_protocol() -> None:
    assert "saturation" in shipped_models()
    loaded = load_model_file("saturation")
    assert isinstance(loaded.model, LatencyModel)
    assert loaded.model.name == "saturation"
    assert loaded.shipped
    assert loaded.path == SHIPPED
    assert loaded.sha256 == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()


def test_a_copy_of_a_model_file_is_loaded_by_path_as_a_foreign_one(tmp_path: Path) -> None:
    copy = tmp_path / "my_model.py"
    copy.write_bytes(SHIPPED.read_bytes().replace(b'name = "saturation"', b'name = "mine"'))
    loaded = load_model_file(copy)
    assert not loaded.shipped
    assert loaded.model.name == "mine"
    assert loaded.sha256 != load_model_file("saturation").sha256
    assert load_model(str(copy)).title == loaded.model.title


def test_a_file_named_like_a_shipped_model_does_not_shadow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saturation").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_model_file("saturation").path == SHIPPED


def test_a_foreign_file_called_saturation_is_not_taken_for_the_shipped_one(tmp_path: Path) -> None:
    copy = tmp_path / "saturation.py"
    copy.write_bytes(SHIPPED.read_bytes())
    assert not load_model_file(copy).shipped


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"satuation: no such model; give one of .*saturation.* or the path"):
        load_model_file("satuation")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('boom')", r"does not run \(RuntimeError: boom\)"),
        ("def f(:\n", r"does not run \(SyntaxError"),
        ("import no_such_library_at_all", r"does not run \(ModuleNotFoundError"),
        ("x = 1", r"MODEL must fulfil .*missing: build, columns, combinations, coordinates, latency, name"),
        (
            "class M:\n  name = 'm'\n  title = 't'\nMODEL = M()",
            "missing: build, columns, .*noises, parameters, scale",
        ),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_the_reason(
    tmp_path: Path, source: str, message: str
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_model_file(path)
    assert str(path) in str(caught.value)


def test_what_a_file_has_is_not_called_missing(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    path.write_text("class M:\n  name = 'm'\n  title = 't'\nMODEL = M()", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_model_file(path)
    missing = str(caught.value).split("missing: ")[1].split(", ")
    assert not {"name", "title"} & set(missing)


def test_a_file_of_another_kind_or_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_text("MODEL = 1", encoding="utf-8")
    with pytest.raises(InputError, match=r"not a Python file; a model is a \.py file"):
        load_model_file(path)
    with pytest.raises(InputError, match="no such model"):
        load_model_file(tmp_path)


def test_all_parameters_are_the_documented_and_those_of_the_noise() -> None:
    model = load_model("saturation")
    names = [p.name for p in all_parameters(model, "proportional")]
    assert names == [*(p.name for p in model.parameters), "nu", "sigma_rel", "sigma_floor"]
    assert [p.name for p in all_parameters(model, "constant")][-2:] == ["nu", "sigma"]


def test_an_unknown_noise_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"noise 'loud': the model saturation has proportional, constant"):
        all_parameters(load_model("saturation"), "loud")
