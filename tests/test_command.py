"""The command `smoothsa`: its programs, recipes by name, advice as it was started."""

import sys

import pytest

from smoothsa_jax import checkout, command
from smoothsa_jax.config.load import load_config, located
from smoothsa_jax.errors import UserError


@pytest.fixture
def installed(monkeypatch):
    """As if this process were the installed command."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/smoothsa"])


def said(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_an_unknown_program(installed, capsys):
    assert command.main(["prepar", "coco"]) == 2
    assert said(capsys).endswith("(see smoothsa --help); did you mean 'prepare'?")


@pytest.mark.parametrize("name", [*command.OF_DATA, command.CONVERT])
def test_every_program_explains_itself(name, installed, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([name, "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and out.startswith(f"usage: smoothsa {name} ")
    assert "python -m" not in out and "main.py" not in out


def test_help_and_errors_name_the_command_that_was_started(installed, capsys, monkeypatch):
    assert command.main(["--help"]) == 0
    assert "    smoothsa --mode=report --workdir=runs/mine" in capsys.readouterr().out
    assert command.main(["--mode=predict"]) == 2
    assert said(capsys) == "error: --mode=predict needs --workdir=...; see smoothsa --help"
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert command.main(["--mode=predict"]) == 2
    assert said(capsys).endswith("see python main.py --help")


def test_advice_of_a_checkout_becomes_that_of_an_installation(installed, monkeypatch, tmp_path):
    text = (
        "python main.py --config=configs/coco.py:spot, python -m data.prepare coco, "
        "python -m smoothsa_jax.convert A B"
    )
    expected = "smoothsa --config=coco:spot, smoothsa prepare coco, smoothsa convert A B"
    assert checkout.as_started(text) == expected
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "voc.py").touch()
    monkeypatch.chdir(tmp_path)
    for path in ("/my/configs/coco.py", "my/configs/coco.py", "configs/voc.py", "configs/mine.py"):
        assert checkout.as_started(f"config file {path}") == f"config file {path}"  # no recipes
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert checkout.as_started(text) == text
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "configs").symlink_to(checkout.ROOT / "configs")
    monkeypatch.setattr(checkout, "ROOT", tmp_path / "wheel")  # in a notebook
    assert checkout.as_started(text) == expected


def test_a_folder_data_of_the_user_is_not_taken_for_ours(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("raise ImportError")
    # As with PYTHONPATH, after a config was loaded.
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path, str(checkout.ROOT)])
    for name in ("data", "data.finished"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = checkout.beside_the_package("data.finished")
    assert found.__file__ == str(checkout.ROOT / "data" / "finished.py")


def test_a_recipe_is_found_by_its_name_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spec in ("coco:spot,student", "configs/coco.py:spot,student"):
        assert located(spec) == f"{checkout.ROOT / 'configs' / 'coco.py'}:spot,student"
    assert load_config("sprites:image,smoke").name == "sprites_image_smoke"
    with pytest.raises(UserError, match="found 'cocoo'.* did you mean 'coco'"):
        load_config("cocoo:spot")
    # A file of one's own goes before a recipe.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "coco.py").write_text("")
    assert located("configs/coco.py") == "configs/coco.py"
    with pytest.raises(UserError, match="'configs/nope.py' does not exist; configs has|give the"):
        load_config("configs/nope.py")
