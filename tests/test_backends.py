"""Backends: the contract, and what is particular to the scripted and the local one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backend_contract import PROMPT, BackendContract

from dmr_gym.backends import LocalBackend, ScriptedBackend, make_backend, with_world
from dmr_gym.cache import CachedBackend, CompletionCache
from dmr_gym.errors import ConfigError
from dmr_gym.kl import token_kl
from dmr_gym.types import Backend, DistributionRequest, Message, Request, SamplingParams

GREEDY = SamplingParams(max_tokens=10, stop=())


class TestScriptedBackend(BackendContract):
    """The contract on scripted answers."""

    @pytest.fixture
    def backend(self) -> Backend:
        """An answer that depends on prompt and precision."""
        return ScriptedBackend(lambda request: f" {request.precision} {len(str(request.prompt))}\nrest", name="t")


class TestLocalBackend(BackendContract):
    """The contract on a random Qwen3 model."""

    @pytest.fixture
    def backend(self, shared_local: LocalBackend) -> Backend:
        """Two random checkpoints on the CPU."""
        return shared_local


class TestLocalBackendWithoutReuse(BackendContract):
    """The contract without a prefix cache, two requests at a time."""

    @pytest.fixture
    def backend(self, cold_local: LocalBackend) -> Backend:
        """Every call computes everything."""
        return cold_local


class TestCachedBackend(BackendContract):
    """A cached backend keeps the contract, except that repeated answers say so."""

    @pytest.fixture
    def backend(self) -> Backend:
        """A cache that forgets everything at once, so that every answer is computed."""
        script = ScriptedBackend(lambda request: f" {request.precision}\n", name="t")
        return CachedBackend(script, CompletionCache(None, memory_mib=0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestLocalBackendOnCuda(BackendContract):
    """The contract in float32 on a GPU."""

    @pytest.fixture
    def backend(self, checkpoints: dict[str, str]) -> Backend:
        """Float32, so that answers do not depend on the batch."""
        return LocalBackend(checkpoints, device="cuda", dtype="float32")


# ---------------------------------------------------------------------------------------------------- scripted


def _scripted(precisions: tuple[str, ...] = ("w3", "bf16"), **options: object) -> Backend:
    return make_backend({"kind": "scripted", **options}, precisions)


def _say(backend: Backend, prompt: str, precision: str = "bf16") -> str:
    return backend.generate([Request(prompt, precision)])[0].text


def test_scripted_text_is_always_the_answer() -> None:
    """A single text answers every prompt at every precision."""
    assert [_say(_scripted(answers="look"), "anything", name) for name in ("w3", "bf16")] == ["look", "look"]


def test_scripted_list_follows_the_turns_of_the_transcript() -> None:
    """The n-th entry answers after n commands, and the last one repeats."""
    backend = _scripted(answers=["a", "b"])
    assert [_say(backend, text) for text in ("In.\n>", "In.\n> a\nOk.\n>", "In.\n> a\nOk.\n> b\nOk.\n>")] == [
        "a",
        "b",
        "b",
    ]
    chat = (Message("user", "In."), Message("assistant", "a"), Message("user", "Ok."))
    assert backend.generate([Request(chat, "w3")])[0].text == "b"


def test_scripted_mapping_answers_the_needle_found_last() -> None:
    """The last sign in the prompt decides, and "" answers where no sign stands."""
    backend = _scripted(answers={"*": {"left": "go left", "right": "go right", "": "wait"}})
    assert [_say(backend, text) for text in ("left right", "right left", "up")] == ["go right", "go left", "wait"]


def test_scripted_precisions_have_their_own_scripts() -> None:
    """A precision's own script wins over "*"."""
    backend = _scripted(("w3", "w4", "bf16"), answers={"w3": "low", "*": "other"})
    assert [_say(backend, "p", name) for name in backend.precisions] == ["low", "other", "other"]


def test_scripted_policies_answer_from_the_request() -> None:
    """Echo repeats the last line; hash chooses the same way each time and uses every choice."""
    assert _say(_scripted(policy="echo"), "one\ntwo\n") == "two"
    backend = _scripted(policy="hash", choices=["x", "y", "z"])
    said = [_say(backend, str(i)) for i in range(40)]
    assert said == [_say(backend, str(i)) for i in range(40)]
    assert set(said) == {"x", "y", "z"}


def test_scripted_counts_bytes_and_the_end() -> None:
    """Four bytes and the end make five tokens; the limit cuts and says so."""
    backend = _scripted(answers="look\nmore", ms_per_token=2.0)
    [found] = backend.generate([Request("abc", "w3")])
    assert (found.text, found.prompt_tokens, found.completion_tokens, found.finish_reason) == ("look", 3, 5, "stop")
    assert found.seconds == pytest.approx(0.010)
    [cut] = backend.generate([Request("abc", "w3", SamplingParams(max_tokens=3))])
    assert (cut.text, cut.completion_tokens, cut.finish_reason) == ("loo", 3, "length")


def test_scripted_divergence_falls_as_precision_rises() -> None:
    """KL(high || low) is larger for the lower of two low precisions, and 0 for high itself."""
    backend = _scripted(("w3", "w4", "bf16"), answers="look")
    found = [
        backend.token_distributions([DistributionRequest(PROMPT, " take book 1\n", n)])[0] for n in backend.precisions
    ]
    divergences = [token_kl(found[-1], other).mean() for other in found]
    assert divergences[0] > divergences[1] > divergences[2] == 0


def test_scripted_digest_names_the_script() -> None:
    """Equal plain data has equal digests; a live function without a name never shares one."""
    assert (
        _scripted(answers="a").digest("w3")
        == _scripted(answers="a").digest("w3")
        != _scripted(answers="b").digest("w3")
    )
    assert ScriptedBackend(str).digest("low") != ScriptedBackend(str).digest("low")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either answers or a policy"),
        ({"answers": "a", "policy": "echo"}, "either answers or a policy"),
        ({"policy": "clever"}, r"one of \['echo', 'hash'\]"),
        ({"answers": {"w3": "a"}}, "precision 'bf16'"),
        ({"answers": []}, "a text, a list or a mapping"),
        (
            {"answer": "a"},
            r"option of backend kind 'scripted': 'answer'; did you mean 'answers'\? known: answers, choi",
        ),
    ],
)
def test_scripted_plain_data_is_checked(options: dict[str, object], message: str) -> None:
    """Wrong options say what is allowed."""
    with pytest.raises(ConfigError, match=message):
        _scripted(**options)


# ---------------------------------------------------------------------------------------------------- factory


def test_factory_refuses_unknown_kinds_and_precisions() -> None:
    """The message lists the kinds; precisions are distinct names."""
    with pytest.raises(ConfigError, match=r"kind 'vlm'; did you mean 'vllm'\? known: embedded, local, scripted, vllm"):
        make_backend({"kind": "vlm"}, ("a",))
    with pytest.raises(ConfigError, match="precisions must be distinct names"):
        make_backend({"kind": "scripted", "answers": "a"}, ("a", "a"))
    with pytest.raises(ConfigError, match="models must map each of"):
        make_backend({"kind": "local", "models": {"w3": "x"}}, ("w3", "bf16"))
    with pytest.raises(ConfigError, match="needs the option models"):
        make_backend({"kind": "local"}, ("w3", "bf16"))


def test_a_text_is_a_kind() -> None:
    """The kind alone stands for the kind without options."""
    with pytest.raises(ConfigError, match="either answers or a policy"):
        make_backend("scripted", ("w3", "bf16"))


def test_missing_folders_are_told_when_the_backend_is_made(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """A folder is looked at once, a hub id on the first call only; weights stay unread until then."""
    (tmp_path / "empty").mkdir()
    for model, message in (
        (str(tmp_path / "absent"), r"models\['w3'\]: checkpoint '.*absent': no config.json"),
        (str(tmp_path / "empty"), "no config.json"),
        ("./absent", "no config.json in .*absent; give an existing folder"),
        (Path("runs/absent"), "no config.json in .*absent; give an existing folder"),
        ("embedded:mars/w3", "no config.json .*reinstall dmr-gym"),
        (3, r"models\['w3'\] must be a checkpoint folder or hub id, got 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_backend({"kind": "local", "models": {"w3": model, "bf16": checkpoints["high"]}}, ("w3", "bf16"))
    folder = Path(shutil.copytree(checkpoints["low"], tmp_path / "damaged"))
    for weights in folder.glob("*.safetensors"):
        weights.write_bytes(b"damaged")
    models = {"w3": "nobody/nothing", "w4": folder, "bf16": checkpoints["high"]}
    assert make_backend({"kind": "local", "models": models}, tuple(models)).precisions == ("w3", "w4", "bf16")


def test_embedded_kind_names_what_is_installed() -> None:
    """The message lists the worlds there are."""
    with pytest.raises(ConfigError, match="no embedded weights for world 'mars'; this installation carries"):
        make_backend({"kind": "embedded", "world": "mars"}, ("bf16",))


def test_embedded_kind_needs_a_world() -> None:
    """No world is taken in place of another: without one, the message lists those there are."""
    for config in ("embedded", {"kind": "embedded"}, {"kind": "embedded", "world": None}):
        with pytest.raises(ConfigError, match=r"needs the option world, .* carries \['alfworld', 'webshop'\]"):
            make_backend(config, ("bf16",))
    with pytest.raises(ConfigError, match=r"no embedded weights for world \['alfworld'\]"):
        make_backend({"kind": "embedded", "world": ["alfworld"]}, ("bf16",))


def test_world_is_filled_in_for_embedded_agents_alone() -> None:
    """The task's kind, unless a world is named; a live task has none to give; the caller's mapping stays as it is."""
    config = {"kind": "embedded", "device": "cpu"}
    assert with_world(config, "webshop") == {"kind": "embedded", "device": "cpu", "world": "webshop"}
    assert config == {"kind": "embedded", "device": "cpu"}
    assert with_world("embedded", "webshop") == {"kind": "embedded", "world": "webshop"}
    assert with_world({**config, "world": "alfworld"}, "webshop")["world"] == "alfworld"
    assert with_world(config, object())["world"] is None
    for other in ("scripted", {"kind": "scripted", "answers": "a"}, {"world": "x"}, 3):
        assert with_world(other, "webshop") is other


def test_embedded_kind_finds_folders_at_run_time(
    checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each precision is a folder of the world, and only those asked for are mapped."""
    for name in ("w3-gptq", "w4-gptq", "bf16"):
        shutil.copytree(checkpoints["low"], tmp_path / "weights" / "alfworld" / name)
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    monkeypatch.setattr("dmr_gym.backends.checkpoint.files", lambda package: tmp_path)
    embedded = {"kind": "embedded", "world": "alfworld"}
    backend = make_backend(embedded, ("w3-gptq", "bf16"))
    assert backend.precisions == ("w3-gptq", "bf16")
    assert backend.generate([Request(PROMPT, "bf16", GREEDY)])[0].completion_tokens >= 1
    with pytest.raises(ConfigError, match=r"precision 'w8'.*\['bf16', 'w3-gptq', 'w4-gptq'\]"):
        make_backend(embedded, ("w8", "bf16"))


def test_importing_backends_loads_no_torch() -> None:
    """Plain data and scripts need no model library."""
    code = "import sys, dmr_gym.backends, dmr_gym.cache, dmr_gym.encoders; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
