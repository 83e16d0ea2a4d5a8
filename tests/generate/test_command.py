"""`fewer generate`, through the command line: files, JSON, exit codes, and repeating a picture."""

import json

import pytest
from PIL import Image

from fewer.cli import main
from fewer.generate import command
from fewer.generate.command import GenerateCommand, _targets
from fewer.generate.request import GenerateRequest


@pytest.fixture
def generate(pipeline_folder, capsys):
    def run(*words: object) -> tuple[int, dict, str]:
        model = [] if "--model" in words else ["--model", pipeline_folder]
        code = main(["generate", *map(str, [*words, *model]), "--device", "cpu", "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else {}, captured.err

    return run


def test_a_picture_and_its_facts(generate, tmp_path):
    code, result, _ = generate(
        "a cat", "--steps", 1, "--seed", 3, "--size", 64, "--output", tmp_path / "a.png"
    )
    assert code == 0
    assert result["output"] == str(tmp_path / "a.png")
    expected = {
        "path": result["output"],
        "prompt": "a cat",
        "seed": 3,
        "width": 64,
        "height": 64,
        "seconds": 0,
    }
    assert result["pictures"][0] | {"seconds": 0} == expected
    assert result["seconds"] > 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (64, 64)


def test_what_cannot_fit_is_refused_before_it_is_drawn(generate, tmp_path, monkeypatch):
    monkeypatch.setattr("fewer.core.device.available_memory", lambda device: 2**30)
    words = ("a cat", "--size", 4096, "--steps", 1, "--output", tmp_path / "a.png")
    code, _, says = generate(*words)
    assert code == 5 and "GiB free" in says and "smaller size" in says
    assert generate("a cat", "--size", 64, "--steps", 1, "--output", tmp_path / "b.png")[0] == 0


def test_a_branch_is_folded_on_a_gpu_alone(generate, tmp_path):
    code, _, says = generate("a cat", "--branch", "folded", "--output", tmp_path / "a.png")
    assert code == 2 and "for a GPU" in says
    assert not (tmp_path / "a.png").exists()


def test_several_prompts_and_counts_go_into_a_folder(generate, tmp_path):
    code, result, _ = generate(
        "a cat", "a cat", "../x/Y z", "--steps", 1, "--count", 2, "--output", tmp_path / "out"
    )
    assert code == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    stems = ["a-cat-0", "a-cat-0-again1", "a-cat-1", "a-cat-1-again1", "x-Y-z-0", "x-Y-z-1"]
    assert names == sorted(f"{stem}.png" for stem in stems)
    assert result["output"] == str(tmp_path / "out")
    assert len(result["pictures"]) == 6


def test_repeating_a_picture_is_byte_for_byte(generate, tmp_path):
    words = ["a cat", "--steps", 2, "--negative", "red", "--guidance", 3, "--count", 2, "--seed", 11]
    assert generate(*words, "--dtype", "bf16", "--output", tmp_path / "first.png")[0] == 0
    for number in (1, 2):
        original = tmp_path / f"first-{number}.png"
        assert generate("--from", original, "--output", tmp_path / "again.png")[0] == 0
        assert (tmp_path / "again.png").read_bytes() == original.read_bytes()
    assert (
        generate("--from", original, "--seed", 5, "--output", tmp_path / "other.png")[1]["pictures"][0][
            "seed"
        ]
        == 5
    )
    assert (tmp_path / "other.png").read_bytes() != original.read_bytes()


def test_no_metadata(generate, tmp_path):
    code, _, _ = generate("a cat", "--steps", 1, "--no-metadata", "--output", tmp_path / "a.png")
    assert code == 0
    assert b"a cat" not in (tmp_path / "a.png").read_bytes()
    code, _, error = generate("--from", tmp_path / "a.png")
    assert code == 2 and "no-metadata" in error


def test_a_file_of_settings(generate, tmp_path):
    settings = tmp_path / "a.toml"
    settings.write_text('prompt = ["a cat"]\nsteps = 3\nguidance-start = 0.5\n')
    code, _, _ = generate("--config", settings, "--steps", 1, "--output", tmp_path / "a.png")
    assert code == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.info["fewer"])["request"]["steps"] == 1
        assert json.loads(picture.info["fewer"])["request"]["guidance_start"] == 0.5


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        ([], 2, "no prompt"),
        (["a", "--size", 33], 2, "multiples of 4"),
        (["a", "--size", 0], 2, "size"),
        (["a", "--width", 32, "--size", 32], 2, "size"),
        (["a", "--guidance", -1], 2, "guidance"),
        (["a", "--steps", 0], 2, "steps"),
        (["a", "--steps", "many"], 2, "steps"),
        (["a", "--seed", -1], 2, "seed"),
        (["a", "--count", 0], 2, "count"),
        (["a", "--binning", "on"], 2, "512, 1024, 2048, 4096"),
        (["a", "--sampler", "ddim"], 2, "sampler"),
        (["a", "--output", "a.jpg"], 2, "png"),
        (["a", "--dtype", "fp32", "--precision", "bf16"], 2, "contradicts"),
        (["a", "--model", "absent"], 4, "neither a folder nor a file"),
        (["a", "--text-encoder", "absent"], 4, "text encoder"),
        (["a", "--lora", "absent.safetensors"], 4, "absent.safetensors"),
        (["--from", "absent.png"], 4, "absent.png"),
    ],
)
def test_wrong_input_ends_with_a_sentence_that_helps(generate, words, code, hint):
    ended, result, error = generate(*words)
    assert (ended, result) == (code, {})
    assert hint in error
    assert "Traceback" not in error


def test_stopping_keeps_what_is_finished(generate, tmp_path, monkeypatch):
    saved = []
    facts = command._facts

    def interrupt(picture, path, seconds):
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt
        return facts(picture, path, seconds)

    monkeypatch.setattr(command, "_facts", interrupt)
    code, _, _ = generate("a cat", "--steps", 1, "--count", 4, "--output", tmp_path)
    assert code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cat-0.png", "a-cat-1.png"]


def test_names_that_users_give_stay_in_the_folder(tmp_path):
    prompts = ("../../etc/passwd", "", "con", "a" * 500, "\x00", "日本")
    targets = _targets(tmp_path, GenerateRequest(prompt=prompts).singles())
    assert len(set(targets)) == len(prompts)
    assert all(path.parent == tmp_path and len(path.name) < 120 for path in targets)


def test_the_command_adds_only_where_and_how():
    assert issubclass(GenerateCommand, GenerateRequest)
    assert GenerateCommand().dtype == "auto"
