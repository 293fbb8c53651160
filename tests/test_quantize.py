"""agents/quantize.py: what it refuses before any work, what it measures, and the copies that llmcompressor makes."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from agents import quantize
from dmr_gym.backends.checkpoint import checkpoint_digest
from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.quantization import engine, estimate, texts
from dmr_gym.quantization.card import describe, read_facts, write_card
from dmr_gym.quantization.settings import TRANSCRIPTS
from dmr_gym.quantization.work import WorkFolder
from dmr_gym.runs import file_digest
from tests.quantizing import base, run

__all__ = ["base"]  # a fixture for tests here


@pytest.mark.parametrize(
    ("options", "bits", "group_size"),
    [
        ([], 4, 128),
        (["--scheme", "W3A16", "--group-size", "32"], 3, 32),
        (["--scheme", "W2A16", "--group-size", "channel"], 2, None),
        (["--scheme", "W8A8"], 8, None),
    ],
)
def test_command_line_means_what_it_says(tmp_path: Path, options: list[str], bits: int, group_size: int | None) -> None:
    """Groups of 128 are the default, W8A8 has one scale a channel, and the scheme's first number is the weights'."""
    settings = quantize.parse(["--model", "m", "--world", "webshop", "--out", str(tmp_path / "new"), *options])
    assert (settings.bits, settings.group_size) == (bits, group_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group-size", "many"], "--group-size must be a number or \"channel\", found 'many'"),
        (["--group-size", "²"], "--group-size must be a number"),
        (["--group-size", "0"], "--group-size must be at least 1"),
        (["--scheme", "W8A8", "--group-size", "128"], "W8A8 has one weight scale a channel"),
        (["--samples", "0"], "must be at least 1"),
        (
            ["--method", "rtn", "--calibration", "c4"],
            "rtn rounds to nearest and reads no text: leave --calibration out",
        ),
    ],
)
def test_impossible_settings_are_refused_at_once(tmp_path: Path, options: list[str], message: str) -> None:
    """A setting that cannot work is refused while the command line is read."""
    with pytest.raises(ConfigError, match=message):
        quantize.parse(["--model", "m", "--world", "webshop", "--out", str(tmp_path / "new"), *options])


@pytest.mark.parametrize(
    ("options", "world"),
    [
        (["--model", "embedded:webshop/bf16"], "webshop"),
        (["--model", "embedded:alfworld/bf16", "--world", "alfworld"], "alfworld"),
        (["--model", "m", "--world", "webshop"], "webshop"),
        (["--model", "m", "--calibration", "c4"], "alfworld"),
        (["--model", "m", "--method", "rtn"], "alfworld"),
    ],
)
def test_transcripts_are_of_the_models_own_world(tmp_path: Path, options: list[str], world: str) -> None:
    """An embedded agent's name says its world; what is calibrated on other texts needs none."""
    assert quantize.parse([*options, "--out", str(tmp_path / "new")]).transcript_world == world


@pytest.mark.parametrize(
    ("options", "calibration"),
    [
        (["--model", "Qwen/Qwen3-1.7B", "--method", "gptq", "--scheme", "W4A16", "--group-size", "128"], "c4"),
        (["--model", "m", "--method", "awq"], "c4"),
        (["--model", "embedded:webshop/bf16"], "transcripts"),
        (["--model", "m", "--world", "webshop"], "transcripts"),
        (["--model", "m", "--world", "webshop", "--calibration", "c4"], "c4"),
        (["--model", "embedded:webshop/bf16", "--calibration", "c4"], "c4"),
        (["--model", "m", "--calibration", "texts.txt"], "texts.txt"),
    ],
)
def test_the_papers_c4_calibrates_where_no_world_is_known(tmp_path: Path, options: list[str], calibration: str) -> None:
    """Its 128 documents of 2,048 tokens; a world that is known or said has transcripts, and what is asked for wins."""
    settings = quantize.parse([*options, "--out", str(tmp_path / "new")])
    assert (settings.calibration, settings.samples, settings.max_length) == (calibration, 128, 2048)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "embedded:webshop/bf16", "--world", "alfworld"], "is an agent of webshop, but --world alfworld"),
        (
            ["--model", "m", "--calibration", "transcripts"],
            "--world must say whose transcripts calibrate m: alfworld or webshop",
        ),
        (["--model", "embedded:bf16"], r'expected "embedded:WORLD/NAME" with WORLD alfworld or webshop'),
    ],
)
def test_a_world_that_is_not_said_or_said_twice_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    """Nothing is calibrated on the transcripts of a world that the model was not made for."""
    with pytest.raises(ConfigError, match=message):
        quantize.parse([*options, "--out", str(tmp_path / "new")])


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test fail as soon as a text is read or a weight is loaded."""
    monkeypatch.setitem(TRANSCRIPTS, "alfworld", lambda *args: pytest.fail("texts were read"))
    monkeypatch.setattr(quantize, "perplexity", lambda *args: pytest.fail("weights were loaded"))
    monkeypatch.setattr(quantize, "quantize", lambda *args: pytest.fail("weights were loaded"))


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without llmcompressor, which takes seconds to import."""
    monkeypatch.setattr(quantize, "check_llmcompressor", lambda: None)


@pytest.mark.usefixtures("light")
def test_width_that_the_group_does_not_divide_is_refused_before_any_work(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names layers and widths, and the groups that would fit; nothing is read, loaded or written."""
    no_work(monkeypatch)
    message = (
        r"does not divide that of model.layers.\*.self_attn.q_proj \(128\).*give --group-size 128 or 64 or 32 or ch"
    )
    with pytest.raises(ConfigError, match=message):
        run(base, tmp_path / "out", "--group-size", "96")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("light")
def test_full_disk_is_refused_before_any_work(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less free space than the copy takes there is an error that says how much it takes."""
    no_work(monkeypatch)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"expected 0.3 MB of free disk, found 0.0 MB"):
        run(base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("light")
def test_the_weights_of_a_hub_model_are_fetched_after_all_that_can_be_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its configuration and tokenizer say what is needed, the download included; the disk has to have room for both."""
    bare = tmp_path / "cache"
    shutil.copytree(base, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    asked = []

    def resolve(model: str, weights: bool = True) -> Path:
        asked.append(weights)
        return pytest.fail("weights were fetched") if weights else bare

    monkeypatch.setattr(quantize, "resolve_checkpoint", resolve)
    no_work(monkeypatch)
    layout = quantize.check(
        quantize.parse(["--model", "org/model", "--calibration", "c4", "--out", str(tmp_path / "o")])
    )
    assert f"0.3 MB for the copy, and {2 * layout.parameters / 1e6:.1f} MB to download" in capsys.readouterr().out
    assert asked == [False]
    size = estimate.copy_bytes(layout, 4, 128) + 2 * layout.parameters
    free = types.SimpleNamespace(free=round(1.2 * size) - 2)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: free)
    with pytest.raises(ConfigError, match="MB of free disk"):
        quantize.main(["--model", "org/model", "--calibration", "c4", "--out", str(tmp_path / "o")])


@pytest.mark.usefixtures("light")
def test_a_hub_model_without_network_says_how_to_get_a_folder(tmp_path: Path) -> None:
    """The hub is not reached, and the message has the command that downloads a folder elsewhere."""
    options = ["--calibration", "c4", "--out", str(tmp_path / "out")]
    with pytest.raises(BackendError, match=r"give a checkpoint folder: `hf download org/model --local-dir FOLDER`"):
        quantize.main(["--model", "org/model", *options])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("light")
def test_an_out_folder_with_something_else_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of others, another command's copy, and a damaged copy stay as they are, and the message says which."""
    no_work(monkeypatch)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigError, match=r"exists already and is no copy that agents/quantize.py has made"):
        run(base, out)
    settings = quantize.parse(["--model", str(base), "--world", "alfworld", "--samples", "4", "--max-length", "64",
                               "--held-out", "2", "--out", str(out)])  # fmt: skip
    (out / "model.safetensors").write_bytes(b"weights")
    made = {"settings": settings.identity(), "sha256": {"model.safetensors": file_digest(out / "model.safetensors")}}
    (out / "quantization.json").write_text(json.dumps(made | {"base_digest": checkpoint_digest(base)}))
    with pytest.raises(ConfigError, match="holds the copy of another command, with scheme 'W4A16' and not 'W3A16'"):
        run(base, out, "--scheme", "W3A16")
    run(base, out)  # this very copy: nothing to do
    (out / "quantization.json").write_text(json.dumps(made | {"base_digest": "other"}))
    with pytest.raises(ConfigError, match="as it was before its files changed"):
        run(base, out)
    (out / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ConfigError, match=r"holds a damaged copy, model.safetensors changed since it was made"):
        run(base, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("light")
def test_one_run_at_a_time_makes_a_copy(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one with the same --out ends at once, and leaves the first one's work alone."""
    no_work(monkeypatch)
    with WorkFolder(tmp_path / "out") as first:
        first.begin({"a": 1})
        first.data("texts", lambda: ["kept"])
        with pytest.raises(ConfigError, match="another run is making"):
            run(base, tmp_path / "out")
        assert first.data("texts", lambda: pytest.fail("lost")) == ["kept"]


@pytest.mark.usefixtures("light")
def test_a_copy_that_another_run_has_just_made_is_not_made_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It appeared after this run had looked for it, and before this run had the folder to itself."""
    no_work(monkeypatch)
    made = iter((None, {"settings": {}}))
    monkeypatch.setattr(quantize, "finished", lambda settings: next(made))
    run(base, tmp_path / "out")
    assert "holds this copy already, whole: nothing to do" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_quantized_are_refused(base: Path, tmp_path: Path) -> None:
    """A folder without a model and a model that is quantized already are refused."""
    with pytest.raises(BackendError, match=r"no config.json"):
        run(tmp_path / "nothing", tmp_path / "out")
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    for file in base.iterdir():
        (quantized / file.name).write_bytes(file.read_bytes())
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="quantized already"):
        run(quantized, tmp_path / "out")


def test_stages_are_kept_for_the_same_work_alone(tmp_path: Path) -> None:
    """Whole stages are found again; half of one, and those of other work, are gone."""
    with WorkFolder(tmp_path / "out") as work:
        assert not work.begin({"scheme": "W4A16"})
        assert work.data("texts", lambda: ["a"]) == ["a"]
        work.folder("copy", lambda part: (part.mkdir(), (part / "config.json").write_text("{}")))
        (work.path / "after.part").mkdir()
        (work.path / "copy" / ".README.7.part.md").write_text("cut")
    with WorkFolder(tmp_path / "out") as work:
        assert work.begin({"scheme": "W4A16"})
        assert work.data("texts", lambda: pytest.fail("made again")) == ["a"]
        copy = work.folder("copy", lambda part: pytest.fail("made again"))
        assert [path.name for path in copy.iterdir()] == ["config.json"]
        assert not (work.path / "after.part").exists()
    with WorkFolder(tmp_path / "out") as work:
        assert not work.begin({"scheme": "W3A16"})
        assert work.data("texts", lambda: ["b"]) == ["b"]
        assert not (work.path / "copy").exists()
        work.publish(work.folder("copy", lambda part: part.mkdir()))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("memory", "rows"), [(1_234_567_168, ["| peak memory bytes | 1234567168 |"]), (None, [])])
def test_the_card_says_how_much_memory_was_taken(tmp_path: Path, memory: int | None, rows: list[str]) -> None:
    """In bytes, beside the seconds; no row where the system does not count it."""
    settings = quantize.parse(["--model", "m", "--method", "rtn", "--out", str(tmp_path / "new")])
    perplexities = {key: {"commands": 1.5} for key in ("before", "after")}
    made = perplexities | {"seconds": 8.9, "peak_memory_bytes": memory}
    write_card(settings, describe(settings, "digest", [], 0, made, tmp_path), tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert [line for line in lines if "memory" in line] == rows
    assert read_facts(tmp_path)["peak_memory_bytes"] == memory


def test_documents_are_read_from_text_and_jsonl(tmp_path: Path) -> None:
    """Blank lines part the documents of a text file; a .jsonl file has one in each line; anything else is an error."""
    (tmp_path / "a.txt").write_text("one\nline two\n\n  \nsecond\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one\\n\\nstill one"}\n{"text": "second"}\n')
    (tmp_path / "c.jsonl").write_text('{"body": "one"}\n')
    (tmp_path / "d.jsonl").write_text('{"text": "one\u2028still \x85one"}\n{"text": " "}\n', encoding="utf-8")
    assert texts.read_documents(tmp_path / "a.txt") == ["one\nline two", "second"]
    assert texts.read_documents(tmp_path / "b.jsonl") == ["one\n\nstill one", "second"]
    assert texts.read_documents(tmp_path / "d.jsonl") == ["one\u2028still \x85one"]
    for name in ("c.jsonl", "absent.txt"):
        with pytest.raises(ConfigError, match="--calibration takes"):
            texts.read_documents(tmp_path / name)


def test_c4_protocol_takes_the_first_long_documents(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only documents with enough tokens count, in their order, and no more than asked for."""
    rows = [{"text": "x " * count} for count in (3, 40, 5, 50, 60)]
    fake = types.SimpleNamespace(load_dataset=lambda *args, **kwargs: iter(rows))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    found = texts.c4_documents(AutoTokenizer.from_pretrained(base), 2, 40)
    assert found == [rows[1]["text"], rows[3]["text"]]


def test_c4_without_a_network_names_what_works_offline(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the hub's client raises, the message has the file and the transcripts as the ways out."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach 'allenai/c4' on the Hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=unreachable))
    message = (
        r"--calibration c4 streams allenai/c4 from the hub, which cannot be reached \(ConnectionError: Couldn't .*"
        r"without a network give --calibration FILE, a \.txt file .* or a \.jsonl file .* --calibration transcripts"
    )
    with pytest.raises(BackendError, match=message):
        texts.c4_documents(AutoTokenizer.from_pretrained(base), 2, 40)


def test_a_calibration_file_that_is_not_there_is_refused(base: Path, tmp_path: Path) -> None:
    """Before anything else is looked at, with what may be given."""
    with pytest.raises(ConfigError, match=r'expected "transcripts", "c4", or a .txt or .jsonl file that can be read'):
        quantize.parse(["--model", str(base), "--calibration", "absent.txt", "--out", str(tmp_path / "out")]).identity()


def test_awq_refuses_models_whose_layers_it_cannot_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown architecture needs layers with the names that llmcompressor's own mapping has."""
    name = "llmcompressor.modifiers.transform.awq"
    pair = types.SimpleNamespace(balance_layers=["re:.*o_proj$"])
    known = {"AWQ_MAPPING_REGISTRY": {"LlamaForCausalLM": []}, "default_mappings": [pair]}
    monkeypatch.setitem(sys.modules, f"{name}.mappings", types.SimpleNamespace(**known))
    dynamic = types.SimpleNamespace(AWQ_DYNAMIC_MAPPING_REGISTRY={})
    monkeypatch.setitem(sys.modules, f"{name}.dynamic_mappings", dynamic)
    engine.check_awq("LlamaForCausalLM", ["whatever"])
    engine.check_awq("OwnForCausalLM", ["model.layers.0.o_proj"])
    with pytest.raises(ConfigError, match="which layers of OwnForCausalLM AWQ may scale together: take --method gptq"):
        engine.check_awq("OwnForCausalLM", ["model.layers.0.c_proj"])
